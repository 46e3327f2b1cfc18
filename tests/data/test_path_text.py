"""A user's own files as a source of text, through the command that a person types."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from nanochat.common.errors import UserError
from nanochat.data import path_text
from nanochat.data.path_text import HeldOut
from nanochat.data.sources import source_of
from nanochat.data.text_shards import TextShards, iter_texts, text_shards


@pytest.fixture(autouse=True)
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    (tmp_path / "mine").mkdir()
    return tmp_path / "base"


def dataset(directory: Path, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "scripts.dataset", "--data", f"path:{directory}", *args]
    return subprocess.run(command, env=dict(os.environ), capture_output=True, text=True, timeout=60)


def refusal(directory: Path) -> str:
    """The one line that the command refuses with, having left nothing behind."""
    done = dataset(directory)
    assert done.returncode == 2, done
    assert len(done.stderr.splitlines()) == 1
    left = [path.name for path in (Path(os.environ["NANOCHAT_BASE_DIR"]) / "data").glob("*") if not path.name.endswith(".lock")]
    assert left == []
    return done.stderr


def shards_of(directory: Path) -> TextShards:
    return text_shards(source_of(f"path:{directory}").name)


def texts_of(path: Path) -> list[str]:
    return [text for texts in iter_texts(path) for text in texts]


def test_every_kind_of_file_is_read_and_something_is_held_out(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    (mine / "deeper").mkdir()
    (mine / "a.txt").write_text("plain text, ünïcode", encoding="utf-8")
    (mine / "deeper/b.MD").write_text("# marked down\n")
    (mine / "empty.txt").write_text(" \n")
    (mine / "ignored.csv").write_text("no,text")
    (mine / ".hidden.txt").write_text("hidden")
    lines = [json.dumps({"text": f"line {i}", "id": i}) for i in range(3)]
    (mine / "c.jsonl").write_text("\n".join(lines) + "\n\n")
    (mine / "d.jsonl.gz").write_bytes(gzip.compress(b'{"text": "zipped"}\n'))
    packer = zstandard.ZstdCompressor()
    (mine / "e.jsonl.zst").write_bytes(packer.compress(b'{"text": "frame 1"}\n{"text": "across ') + packer.compress(b'frames"}\n'))
    pq.write_table(pa.table({"id": [1, 2, 3], "text": ["column", None, "column 2"]}), mine / "f.parquet")
    done = dataset(mine)
    assert done.returncode == 0, done.stderr
    assert "10 documents" in done.stdout
    shards = shards_of(mine)
    train, val = [text for path in shards.train for text in texts_of(path)], texts_of(shards.val)
    expected = {"plain text, ünïcode", "# marked down\n", "line 0", "line 1", "line 2", "zipped", "frame 1", "across frames"}
    assert len(val) >= 1
    assert sorted(train + val) == sorted(expected | {"column", "column 2"})
    assert shards.val.name == f"shard_{len(shards.train):05d}.parquet"


def test_a_single_file_is_a_source(tmp_path: Path) -> None:
    (tmp_path / "mine/c.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    assert dataset(tmp_path / "mine/c.jsonl").returncode == 0
    shards = shards_of(tmp_path / "mine/c.jsonl")
    assert sorted(texts_of(shards.train[0]) + texts_of(shards.val)) == ["one", "two"]


def test_made_once_and_anew_when_files_change(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    for i in range(5):
        (mine / f"{i}.txt").write_text(f"document {i}")
    assert dataset(mine).returncode == 0
    made = shards_of(mine).val.stat().st_mtime_ns
    again = dataset(mine)
    assert (again.returncode, "already there" in again.stdout) == (0, True)
    assert shards_of(mine).val.stat().st_mtime_ns == made
    (mine / "5.txt").write_text("document 5")
    changed = dataset(mine)
    assert (changed.returncode, "changed" in changed.stdout) == (0, True)
    assert "6 documents" in changed.stdout


def test_a_failure_keeps_what_was_there(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    (mine / "a.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    assert dataset(mine).returncode == 0
    (mine / "b.jsonl").write_text("{broken\n")
    assert dataset(mine).returncode == 2
    shards = shards_of(mine)
    assert sorted(texts_of(shards.train[0]) + texts_of(shards.val)) == ["one", "two"]


def test_refuses_what_is_not_there_or_empty(tmp_path: Path) -> None:
    assert "no such directory" in refusal(tmp_path / "nowhere")
    assert "no text in it" in refusal(tmp_path / "mine")
    (tmp_path / "mine/a.txt").write_text("\n")
    assert "no text" in refusal(tmp_path / "mine")
    (tmp_path / "mine/b.txt").write_text("alone")
    assert "one document only" in refusal(tmp_path / "mine")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("bad.jsonl", b'{"text": "fine"}\n{"text": \n', ["bad.jsonl, line 2", "not JSON"]),
        ("bad.jsonl", b'{"text": "fine"}\n["text"]\n', ["bad.jsonl, line 2", "no string field `text`"]),
        ("bad.jsonl", b'{"text": "fine"}\n\n{"text": 5}\n', ["bad.jsonl, line 3", "no string field `text`"]),
        ("bad.jsonl", b'{"text": "\\ud800"}\n', ["bad.jsonl, line 1", "UTF-8"]),
        ("bad.jsonl", b'{"text": "fine"}\n{"text": "\xff"}\n', ["bad.jsonl, line 2", "UTF-8"]),
        ("bad.txt", b"first\nsecond \xff line", ["bad.txt, line 2, byte 13", "UTF-8"]),
        ("bad.jsonl.gz", gzip.compress(b'{"text": "fine"}\n' * 1000, mtime=0)[:-20], ["bad.jsonl.gz", "truncated"]),
        ("bad.jsonl.zst", zstandard.compress(b'{"text": "fine"}\n' * 1000)[:-5], ["bad.jsonl.zst", "truncated"]),
        ("bad.jsonl.zst", b"no zstd at all", ["bad.jsonl.zst", "no zstd"]),
        ("bad.parquet", b"PAR1 no parquet", ["bad.parquet", "truncated"]),
    ],
)
def test_broken_files_are_named(tmp_path: Path, name: str, content: bytes, said: list[str]) -> None:
    (tmp_path / "mine/a.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    (tmp_path / "mine" / name).write_bytes(content)
    line = refusal(tmp_path / "mine")
    for part in said:
        assert part in line


def test_parquet_truncated_or_without_text(tmp_path: Path) -> None:
    path = tmp_path / "mine/x.parquet"
    pq.write_table(pa.table({"content": ["a", "b"]}), path)
    assert "no column `text`, only content" in refusal(tmp_path / "mine")
    pq.write_table(pa.table({"text": [1, 2]}), path)
    assert "not strings" in refusal(tmp_path / "mine")
    pq.write_table(pa.table({"text": ["a", "b"]}), path)
    path.write_bytes(path.read_bytes()[:-10])
    assert "truncated" in refusal(tmp_path / "mine")


def test_shards_are_cut_at_their_size_and_limited_in_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(path_text, "SHARD_BYTES", 10_000)
    documents = [f"document {i} " + "x" * 80 for i in range(1000)]
    (tmp_path / "mine/a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    source = source_of(f"path:{tmp_path / 'mine'}")
    path_text.make(source, 3)
    shards = text_shards(source.name)
    assert [path.name for path in shards.train] == [f"shard_{i:05d}.parquet" for i in range(3)]
    assert shards.val.name == "shard_00003.parquet"
    assert path_text.is_there(source, 2)
    assert not path_text.is_there(source, 4)
    assert texts_of(shards.train[0]) != sorted(texts_of(shards.train[0]), key=documents.index)

    path_text.make(source, -1)
    shards = text_shards(source.name)
    everything = [text for path in [*shards.train, shards.val] for text in texts_of(path)]
    assert sorted(everything) == sorted(documents)
    assert path_text.is_there(source, -1)
    before = [path.read_bytes() for path in [*shards.train, shards.val]]
    path_text.make(source, -1)
    assert [path.read_bytes() for path in [*shards.train, shards.val]] == before


def test_held_out_is_a_hundredth_from_all_over_the_stream_and_bounded() -> None:
    held_out = HeldOut()
    given = [text for i in range(20_000) for text in held_out.offer(f"document {i}")]
    held = held_out.texts()
    assert 140 < len(held) < 260
    assert len(given) + len(held) == 20_000
    assert set(given).isdisjoint(held)
    numbers = [int(text.split()[1]) for text in held]
    assert sum(number < 10_000 for number in numbers) in range(60, 140)

    bounded = HeldOut(max_bytes=500)
    given = [text for i in range(20_000) for text in bounded.offer(f"document {i}")]
    assert 400 < sum(map(len, bounded.texts())) <= 500
    assert set(bounded.texts()) < set(held)


def test_copies_of_a_document_are_not_split_between_training_and_validation() -> None:
    held_out = HeldOut(share=0.3)
    given = {text for i in range(3000) for text in held_out.offer(f"document {i % 100}")}
    assert given.isdisjoint(held_out.texts())


def test_a_flipped_bit_makes_the_shards_again(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"mine/{number}.txt").write_text(f"text number {number} " * 50)
    assert dataset(tmp_path / "mine").returncode == 0
    (shard,) = shards_of(tmp_path / "mine").train
    whole = shard.read_bytes()
    shard.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    with pytest.raises(UserError, match=f"{shard.name}: its checksum is not .*scripts.dataset --data path:.* which makes it again"):
        texts_of(shard)
    again = dataset(tmp_path / "mine")
    assert again.returncode == 0
    assert f"warning: {shard}: its checksum" in again.stderr
    assert shard.read_bytes() == whole
    assert "already there" in dataset(tmp_path / "mine").stdout
