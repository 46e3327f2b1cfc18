"""Commands on a full disk: one line that names the place, nothing half-written, and once there is room the same command ends well."""

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from nanochat.common.files import append_line, atomic_path, full_disk
from tests.conftest import VOCAB_SIZE, Finished, World, wrong_request
from tests.data.hub_server import Hub, serve
from tests.data.test_hub_text import parquet
from tests.model.test_find import is_there

DISK_BYTES = 48_000_000


@dataclass
class Disk:
    """A small disk of its own."""

    place: Path

    def fill(self, room: int) -> None:
        """Leave that many bytes."""
        with (self.place / ".filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
            while filler.write(bytes(1 << 16)):
                pass
        os.truncate(self.place / ".filler", (self.place / ".filler").stat().st_size - room)

    def make_room(self) -> None:
        """Take out what fills it."""
        (self.place / ".filler").unlink()

    def files(self) -> dict[str, bytes]:
        """What stands on it under a name of its own, by place."""
        found = [path for path in self.place.rglob("*") if path.is_file() and not path.is_symlink() and path.suffix != ".lock"]
        parts = {path: path.relative_to(self.place).parts for path in found}
        return {
            "/".join(parts[path]): path.read_bytes()
            for path in found
            if not any(part.startswith(".") for part in parts[path]) and "verified" not in parts[path]
        }


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a disk cannot be mounted here: {mounted.stderr.decode().strip()}")
    yield Disk(place)
    subprocess.run(["umount", "-l", str(place)], check=True)


CASES = {
    # command: what it finds, the room that is left, what stands when it is done
    "scripts.dataset --data path:{text}": ((), 8_192, "data/path-*/shard_00001.parquet"),
    "scripts.dataset --num_shards 2": ((), 60_000, "data/climbmix/shard_00001.parquet"),
    f"scripts.tok_train --vocab_size {VOCAB_SIZE}": (("data",), 4_096, f"tokenizer/*-{VOCAB_SIZE}/training.json"),
    "scripts.tok_encode": (("data", "tokenizer"), 65_536, "tokens/*/index.json"),
    "scripts.base_loss --eval_tokens 512": (("data", "tokenizer", "tokens", "trained"), 0, "runs/trained/base/base_loss.json"),
    "scripts.base_eval --bundle=small --max_per_task=1": (("trained",), 0, "runs/trained/base/core.json"),
    "scripts.chat_eval -i base -a Arithmetic -x 1 --max_new_tokens 2": (("trained",), 0, "runs/trained/base/chat_eval.json"),
    "scripts.report": (("trained",), 0, "runs/trained/report.md"),
    "scripts.export -i base --output {disk}/out": (("trained",), 150_000, "out/config.json"),
}


@pytest.mark.parametrize("command", CASES)
def test_a_command_whose_disk_is_full(world: World, trained: Path, disk: Disk, tmp_path: Path, command: str) -> None:
    found, room, result = CASES[command]
    for name in found:
        if name == "trained":
            shutil.copytree(trained.parent, disk.place / "runs/trained/base", ignore=shutil.ignore_patterns("checkpoints", ".lock"))
        else:
            (disk.place / name).symlink_to(world.base / name)
    places = {"text": world.base / "my text", "disk": disk.place}
    module, *args = [part.format(**places) for part in command.split(" ")]

    with serve() as hub:
        offer_text(hub)

        def run() -> Finished:
            environment = world.environment(NANOCHAT_BASE_DIR=str(disk.place), HF_ENDPOINT=hub.endpoint, HF_HUB_OFFLINE="0")
            return subprocess.run(
                [sys.executable, "-m", module, *args], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200
            )

        before = disk.files()
        disk.fill(room)
        full = run()
        wrong_request(full, "the disk is full at ", str(disk.place), os.strerror(errno.ENOSPC))
        left = {name: content for name, content in disk.files().items() if name not in before}
        disk.make_room()
        done = run()
    assert done.returncode == 0, done.stderr
    assert list(disk.place.glob(result))
    if result.startswith("runs/trained/base/"):
        assert is_there(disk.place / "runs/trained", result.removeprefix("runs/trained/"))  # the run script does not ask for it again
    whole = disk.files()
    for name, content in left.items():
        json.loads(content) if name.endswith(".json") else None
        assert name.endswith((".json", ".png")) or whole[name] == content, name
    assert [path for path in disk.place.rglob(".*") if path.suffix in (".tmp", ".part", ".old")] == []


def offer_text(hub: Hub) -> None:
    for number in (0, 1, 6542):
        hub.files[f"shard_{number:05d}.parquet"] = parquet(*(os.urandom(100).hex() for _ in range(500)))


def test_a_line_is_added_wholly_or_not_at_all(disk: Disk) -> None:
    path = disk.place / "lines.jsonl"
    append_line(path, "one")
    disk.fill(0)
    with pytest.raises(OSError, match=r"lines\.jsonl") as raised:
        append_line(path, "x" * 10_000)
    assert raised.value.errno == errno.ENOSPC
    assert path.read_text() == "one\n"
    disk.make_room()
    append_line(path, "é")
    assert path.read_text(encoding="utf-8") == "one\né\n"


def test_what_came_of_a_full_disk_is_known_for_it() -> None:
    full, other = OSError(errno.ENOSPC, "No space left on device"), RuntimeError("another library's word for it")
    other.__cause__ = full
    assert full_disk(other) is full_disk(full) is full
    assert full_disk(RuntimeError()) is None


def test_an_error_without_a_name_gets_the_files(disk: Disk) -> None:
    disk.fill(0)
    with pytest.raises(OSError, match=r"disk/a\.bin"), atomic_path(disk.place / "a.bin") as aside:
        aside.write_bytes(bytes(10_000))
    assert not (disk.place / "a.bin").exists()


def test_conversations_that_cannot_be_kept_are_told_of_once_and_later_ones_are(disk: Disk, capsys: pytest.CaptureFixture[str]) -> None:
    from nanochat.serve.server import _log

    path = disk.place / "talk.jsonl"
    keep = _log(str(path))
    keep([{"role": "user", "content": "first"}])
    disk.fill(0)
    for _ in range(3):
        keep([{"role": "user", "content": "x" * 10_000}])
    assert capsys.readouterr().err.count("talk.jsonl cannot be written (No space left on device)") == 1
    disk.make_room()
    keep([{"role": "user", "content": "last"}])
    assert [json.loads(line)["messages"][0]["content"] for line in path.read_text().splitlines()] == ["first", "last"]
