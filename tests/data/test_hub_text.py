"""Downloads from the hub, played by a server on this machine, through the command that a person types."""

import hashlib
import io
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanochat.common import checksums
from nanochat.common.files import read_json
from nanochat.data import hub_text
from nanochat.data.sources import CLIMBMIX
from nanochat.data.text_shards import iter_texts, write_parquet
from tests.data.hub_server import COMMIT, Hub, serve

VAL = "shard_06542.parquet"


def parquet(*texts: str) -> bytes:
    file = io.BytesIO()
    write_parquet(file, texts)
    return file.getvalue()


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve() as hub:
        for index in (*range(4), 6542):
            hub.files[f"shard_{index:05d}.parquet"] = parquet(f"first of {index}", f"second of {index}")
        yield hub


def dataset(tmp_path: Path, endpoint: str, *args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    places = {"NANOCHAT_BASE_DIR": str(tmp_path / "base"), "HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": endpoint}
    own = {**places, "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1", "NANOCHAT_DOWNLOAD_FIRST_WAIT_S": "0.01"}
    return subprocess.run(
        [sys.executable, "-m", "scripts.dataset", *args],
        env={**os.environ, **own, **environment},
        capture_output=True,
        text=True,
        timeout=40,
    )


def shards(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "base/data/climbmix").glob("*.parquet"))


def test_downloads_validation_and_first_train_shards_and_resumes(hub: Hub, tmp_path: Path) -> None:
    first = dataset(tmp_path, hub.endpoint, "--num_shards", "2")
    assert first.returncode == 0, first.stderr
    assert "CC BY-NC 4.0" in first.stdout
    assert "2 train shards and 1 for validation, 6 documents" in first.stdout
    assert shards(tmp_path) == ["shard_00000.parquet", "shard_00001.parquet", VAL]
    assert list(iter_texts(tmp_path / "base/data/climbmix" / VAL)) == [["first of 6542", "second of 6542"]]
    assert hub.downloads()[VAL] == 1
    assert read_json(tmp_path / "base/data/climbmix/source.json")["revision"] == COMMIT

    hub.requests.clear()
    assert dataset(tmp_path, hub.endpoint, "--num_shards", "3").returncode == 0
    assert dict(hub.downloads()) == {"shard_00002.parquet": 1}
    assert {revision for _, revision, _ in hub.requests} == {COMMIT}

    hub.requests.clear()
    again = dataset(tmp_path, "http://127.0.0.1:1", "--num_shards", "3")
    assert (again.returncode, hub.requests) == (0, [])
    assert "already there" in again.stdout


def test_validation_comes_first(hub: Hub, tmp_path: Path) -> None:
    assert dataset(tmp_path, hub.endpoint, "--num_shards", "3", "--num_workers", "1").returncode == 0
    assert list(hub.downloads()) == [VAL, "shard_00000.parquet", "shard_00001.parquet", "shard_00002.parquet"]


def test_failures_that_pass_are_survived(hub: Hub, tmp_path: Path) -> None:
    hub.unavailable = 1
    hub.faults = {VAL: ["cut", "stalled", 429, "reset"], "shard_00000.parquet": ["wrong", "page"]}
    done = dataset(tmp_path, hub.endpoint, "--num_shards", "1", NANOCHAT_DOWNLOAD_SILENCE_S="0.5")
    assert done.returncode == 0, done.stderr
    assert "trying again" in done.stdout
    assert (tmp_path / "base/data/climbmix" / VAL).read_bytes() == hub.files[VAL]
    assert list(iter_texts(tmp_path / "base/data/climbmix/shard_00000.parquet")) == [["first of 0", "second of 0"]]


def test_a_broken_shard_on_disk_is_fetched_again(hub: Hub, tmp_path: Path) -> None:
    assert dataset(tmp_path, hub.endpoint, "--num_shards", "1").returncode == 0
    shard = tmp_path / "base/data/climbmix/shard_00000.parquet"
    shard.write_bytes(shard.read_bytes()[:100])
    assert dataset(tmp_path, hub.endpoint, "--num_shards", "1").returncode == 0
    assert shard.read_bytes() == hub.files[shard.name]


def test_a_shard_that_is_always_broken_is_an_error_and_not_kept(hub: Hub, tmp_path: Path) -> None:
    hub.files["shard_00000.parquet"] = b"no parquet"
    done = dataset(tmp_path, hub.endpoint, "--num_shards", "1", "--num_workers", "1")
    assert done.returncode == 2
    assert "shard_00000.parquet arrived wrong 3 times (it is truncated, or no parquet file)" in done.stderr
    assert shards(tmp_path) == [VAL]


def test_unreachable_hub_says_what_is_there_and_how_to_go_on(hub: Hub, tmp_path: Path) -> None:
    assert dataset(tmp_path, hub.endpoint, "--num_shards", "1").returncode == 0
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
    done = dataset(tmp_path, endpoint, "--num_shards", "2")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "Traceback" not in done.stdout
    for part in (endpoint, "2 of 3 shards", "same command", "--data python"):
        assert part in done.stderr


def test_a_missing_file_is_not_asked_for_again_and_again(hub: Hub, tmp_path: Path) -> None:
    del hub.files["shard_00000.parquet"]
    done = dataset(tmp_path, hub.endpoint, "--num_shards", "1", "--num_workers", "1")
    assert done.returncode == 2
    assert "1 of 2 shards" in done.stderr
    assert sum(file == "shard_00000.parquet" for _, _, file in hub.requests) == 1


def test_offline_mode_says_so(hub: Hub, tmp_path: Path) -> None:
    done = dataset(tmp_path, hub.endpoint, "--num_shards", "1", HF_HUB_OFFLINE="1")
    assert done.returncode == 2
    assert "HF_HUB_OFFLINE" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert hub.requests == []


def test_a_revision_that_is_gone_is_replaced_by_the_newest(hub: Hub, tmp_path: Path) -> None:
    directory = tmp_path / "base/data/climbmix"
    directory.mkdir(parents=True)
    (directory / "source.json").write_text('{"revision": "feedfacefeedfacefeedfacefeedfacefeedface"}')
    hub.gone = {"feedfacefeedfacefeedfacefeedfacefeedface"}
    done = dataset(tmp_path, hub.endpoint, "--num_shards", "1")
    assert done.returncode == 0, done.stderr
    assert "no revision" in done.stderr
    assert read_json(directory / "source.json")["revision"] == COMMIT


def test_shards_of_a_revision_that_is_gone_are_held_against_the_newest(hub: Hub, tmp_path: Path) -> None:
    assert dataset(tmp_path, hub.endpoint, "--num_shards", "2").returncode == 0
    directory = tmp_path / "base/data/climbmix"
    record = directory / "source.json"
    record.write_text(record.read_text().replace(COMMIT, "feedface" * 5))
    hub.gone = {"feedface" * 5}
    hub.files["shard_00001.parquet"] = parquet("what the newest revision has there")
    hub.requests.clear()
    assert dataset(tmp_path, hub.endpoint, "--num_shards", "3").returncode == 0
    assert dict(hub.downloads()) == {"shard_00001.parquet": 1, "shard_00002.parquet": 1}
    assert (directory / "shard_00001.parquet").read_bytes() == hub.files["shard_00001.parquet"]
    assert read_json(record)["revision"] == COMMIT


def test_what_was_begun_of_shards_that_are_not_wanted_any_more_is_removed(hub: Hub, tmp_path: Path) -> None:
    directory = tmp_path / "base/data/climbmix"
    directory.mkdir(parents=True)
    for name in ("shard_00001.parquet", "shard_00002.parquet"):
        (directory / f".{name}.{hashlib.sha256(hub.files[name]).hexdigest()[:16]}.part").write_bytes(hub.files[name][:20])
    assert dataset(tmp_path, hub.endpoint, "--num_shards", "2").returncode == 0
    assert list(directory.glob(".*")) == []
    assert sorted(hub.ranges) == ["", "", "bytes=20-"]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (503, "after 2 attempts: HTTP 503"),
        ("silent", "after 2 attempts: timed out"),
        ("wrong", "arrived wrong 3 times (its checksum is not the published one)"),
        (401, "HTTP 401, it wants to know who asks"),
    ],
)
def test_giving_up_is_one_line_and_leaves_nothing_under_a_shards_name(hub: Hub, tmp_path: Path, fault: str | int, reason: str) -> None:
    hub.always = {"shard_00001.parquet": fault}
    impatient = {"NANOCHAT_DOWNLOAD_ATTEMPTS": "2", "NANOCHAT_DOWNLOAD_SILENCE_S": "0.5"}
    done = dataset(tmp_path, hub.endpoint, "--num_shards", "2", "--num_workers", "1", **impatient)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    for part in (f"{COMMIT}/shard_00001.parquet", reason, "2 of 3 shards are in", "same command"):
        assert part in done.stderr
    assert shards(tmp_path) == ["shard_00000.parquet", VAL]
    hub.always = {}
    assert dataset(tmp_path, hub.endpoint, "--num_shards", "2").returncode == 0
    assert shards(tmp_path) == ["shard_00000.parquet", "shard_00001.parquet", VAL]


def test_a_hub_that_wants_to_know_who_asks_is_told(hub: Hub, tmp_path: Path) -> None:
    hub.key = "hf_right"
    refused = dataset(tmp_path, hub.endpoint, "--num_shards", "1", HF_TOKEN="hf_wrong")
    assert refused.returncode == 2
    assert "HF_TOKEN" in refused.stderr
    assert "hf_wrong" not in refused.stdout + refused.stderr
    assert dataset(tmp_path, hub.endpoint, "--num_shards", "1", HF_TOKEN="hf_right").returncode == 0


def test_a_flipped_bit_is_named_by_who_reads_it_and_the_same_command_fetches_the_shard_again(hub: Hub, tmp_path: Path) -> None:
    hub.files["shard_00000.parquet"] = parquet(*(f"document {number} of many words" for number in range(200)))
    assert dataset(tmp_path, hub.endpoint, "--num_shards", "2").returncode == 0
    shard = tmp_path / "base/data/climbmix/shard_00000.parquet"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:200] + bytes([whole[200] ^ 1]) + whole[201:])
    environment = {**os.environ, "NANOCHAT_BASE_DIR": str(tmp_path / "base")}
    train = [sys.executable, "-m", "scripts.tok_train", "--data=climbmix", "--vocab_size=300"]
    refused = subprocess.run(train, env=environment, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1
    for part in (str(shard), "its checksum", "`python -m scripts.dataset --data climbmix` again, which fetches it again"):
        assert part in refused.stderr
    hub.requests.clear()
    again = dataset(tmp_path, hub.endpoint, "--num_shards", "2")
    assert again.returncode == 0
    assert again.stderr == f"warning: {shard}: its checksum is not the one it was written with; it is replaced\n"
    assert dict(hub.downloads()) == {"shard_00000.parquet": 1}
    assert shard.read_bytes() == whole
    assert subprocess.run(train, env=environment, capture_output=True, timeout=60).returncode == 0


def test_shards_without_a_checksum_are_held_against_the_hub_and_not_fetched_when_right(hub: Hub, tmp_path: Path) -> None:
    assert dataset(tmp_path, hub.endpoint, "--num_shards", "2").returncode == 0
    directory = tmp_path / "base/data/climbmix"
    (directory / "checksums.json").unlink()
    (directory / "shard_00001.parquet").write_bytes(parquet("quite another text"))
    hub.requests.clear()
    assert dataset(tmp_path, hub.endpoint, "--num_shards", "2").returncode == 0
    assert dict(hub.downloads()) == {"shard_00001.parquet": 1}
    assert (directory / "shard_00001.parquet").read_bytes() == hub.files["shard_00001.parquet"]


def test_a_killed_download_goes_on(hub: Hub, tmp_path: Path) -> None:
    hub.files[VAL] = parquet(*(random.Random(number).randbytes(500).hex() for number in range(200)))  # half of it fills the file's buffer
    hub.faults = {VAL: ["stalled"]}
    places = {"NANOCHAT_BASE_DIR": str(tmp_path / "base"), "HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": hub.endpoint}
    command = [sys.executable, "-m", "scripts.dataset", "--num_shards", "1", "--num_workers", "1"]
    with subprocess.Popen(command, env={**os.environ, **places, "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}) as process:
        while not (begun := list((tmp_path / "base").glob("data/climbmix/.*.part"))) or not begun[0].stat().st_size:
            time.sleep(0.01)
        process.kill()
    assert shards(tmp_path) == []
    assert dataset(tmp_path, hub.endpoint, "--num_shards", "1").returncode == 0
    assert any(each.startswith("bytes=") for each in hub.ranges)
    assert (tmp_path / "base/data/climbmix" / VAL).read_bytes() == hub.files[VAL]
    assert list((tmp_path / "base").glob("data/climbmix/.*")) == []


def test_what_was_held_against_the_hub_is_not_read_again(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert dataset(tmp_path, hub.endpoint, "--num_shards", "2").returncode == 0
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    monkeypatch.setattr(checksums, "digest_of", lambda path, digits: "read again")
    assert hub_text.is_there(CLIMBMIX, 2)
    shard = tmp_path / "base/data/climbmix/shard_00001.parquet"
    shard.write_bytes(shard.read_bytes())
    assert not hub_text.is_there(CLIMBMIX, 2)
