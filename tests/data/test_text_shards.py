"""Text shards as other parts read them: what is there, in which order, and what is said when something is not."""

import errno
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.common.errors import UserError
from nanochat.common.paths import data_dir
from nanochat.data.sources import source_of
from nanochat.data.text_shards import count_rows, iter_texts, shard_path, text_shards, write_parquet, write_shard


@pytest.fixture(autouse=True)
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))


def test_round_trip_by_row_groups(tmp_path: Path) -> None:
    texts = [f"document {i}, é 漢 🙂" for i in range(2500)]
    write_shard(tmp_path / "shard.parquet", iter(texts))
    batches = list(iter_texts(tmp_path / "shard.parquet"))
    assert [len(batch) for batch in batches] == [1024, 1024, 452]
    assert [text for batch in batches for text in batch] == texts
    assert count_rows(tmp_path / "shard.parquet") == 2500
    assert pq.ParquetFile(tmp_path / "shard.parquet").metadata.row_group(0).column(0).compression == "ZSTD"


@settings(deadline=None, max_examples=30)
@given(st.lists(st.text()))
def test_round_trip_of_any_text(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    path = tmp_path_factory.mktemp("any") / "shard.parquet"
    texts = [text.encode("utf-8", "ignore").decode() for text in texts]
    write_shard(path, texts)
    assert [text for batch in iter_texts(path) for text in batch] == texts


def test_a_shard_is_complete_or_absent(tmp_path: Path) -> None:
    def fails() -> object:
        yield from ["text"] * 2000
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_shard(tmp_path / "shard.parquet", fails())  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_keeps_its_error_number() -> None:
    noise = random.Random(0).randbytes(2_000_000).hex()
    with pytest.raises(OSError, match="No space") as caught, Path("/dev/full").open("wb") as file:
        write_parquet(file, [noise] * 2)
    assert caught.value.errno == errno.ENOSPC


def test_train_and_validation_of_a_known_source() -> None:
    for index in (6542, 10, 2):
        write_shard(shard_path(data_dir("climbmix"), index), ["text"])
    (data_dir("climbmix") / ".shard_00003.parquet.1.tmp").write_text("half")
    shards = text_shards("climbmix")
    assert [path.name for path in shards.train] == ["shard_00002.parquet", "shard_00010.parquet"]
    assert shards.val.name == "shard_06542.parquet"


@pytest.mark.parametrize("there", [[], [0, 1], [31]])
def test_missing_shards_name_the_command(there: list[int]) -> None:
    for index in there:
        write_shard(shard_path(data_dir("python"), index), ["text"])
    with pytest.raises(UserError, match=r"python -m scripts\.dataset --data python"):
        text_shards("python")


def test_missing_text_of_a_directory_names_it() -> None:
    source = source_of("path:some/texts")
    with pytest.raises(UserError, match=r"--data path:some/texts"):
        text_shards(source.name, source.data)


@pytest.mark.parametrize("damage", ["truncated", "empty", "middle", "column"])
def test_broken_shards_are_named_with_what_to_do(damage: str) -> None:
    path = shard_path(data_dir("python"), 0)
    write_shard(path, [random.Random(i).randbytes(50).hex() for i in range(3000)])
    data = path.read_bytes()
    if damage == "column":
        pq.write_table(pa.table({"content": ["text"]}), path)
    else:
        half = len(data) // 2
        path.write_bytes({"truncated": data[:half], "empty": b"", "middle": data[:half] + bytes(5000) + data[half + 5000 :]}[damage])
    with pytest.raises(UserError) as caught:
        list(iter_texts(path))
    assert str(path) in str(caught.value)
    assert "which makes it again" in str(caught.value)
    assert "python -m scripts.dataset --data python" in str(caught.value)


@pytest.mark.parametrize("data", ["", "pythn", "climbmix-400b", "/some/dir", "path:"])
def test_unknown_sources(data: str) -> None:
    with pytest.raises(UserError, match="--data"):
        source_of(data)


def test_names_of_directories_tell_them_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert source_of("path:texts").name == source_of(f"path:{tmp_path}/texts").name
    assert source_of("path:texts").name != source_of("path:deeper/texts").name
    assert source_of("path:my texts/ü").name.isascii()
    assert source_of("path:my texts").name.startswith("path-my-texts-")
