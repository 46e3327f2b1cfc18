"""Text on disk: parquet shards with one column `text`, and which of them is held out for validation."""

import dataclasses
import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from nanochat.common.checksums import read_checksums, write_checksums, wrong_file, wrong_files
from nanochat.common.console import warn
from nanochat.common.errors import UserError
from nanochat.common.files import atomic_path, read_json, sha256_file
from nanochat.common.paths import data_dir
from nanochat.data.sources import NAMED

ROW_GROUP_DOCUMENTS = 1024
SHARD_NAME = re.compile(r"shard_(\d{5,})\.parquet")


@dataclasses.dataclass(frozen=True)
class TextShards:
    """The shards of a source that lie complete on disk."""

    train: list[Path]
    val: Path


def shard_path(directory: Path, index: int) -> Path:
    """Path of shard number `index`."""
    return directory / f"shard_{index:05d}.parquet"


def read_record(directory: Path) -> dict[str, Any]:
    """What `source.json` says of how the shards in a directory were made; empty when there is none that can be read."""
    try:
        record = read_json(directory / "source.json")
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def text_shards(name: str, data: str = "") -> TextShards:
    """The shards of the source with this short name that are on disk; `data` is what its `--data` was, for the error.

    Raises UserError, with the command to give, when no train shard or no validation shard is there.
    """
    directory = data_dir(name)
    record = read_record(directory)
    val_index = NAMED[name].val_index if name in NAMED else int(record.get("val_index", -1))
    found = {int(match[1]): path for path in directory.glob("shard_*.parquet") if (match := SHARD_NAME.fullmatch(path.name))}
    val = found.pop(val_index, None)
    if not found or val is None:
        what = "validation shard of" if found and val is None else "text of"
        command = f"python -m scripts.dataset --data {data or record.get('data') or (name if name in NAMED else 'path:DIR')}"
        raise UserError(f"no {what} {data or name} in {directory}: get it with `{command}`")
    return TextShards([found[index] for index in sorted(found)], val)


def missing_shards(directory: Path, wanted: Iterable[int], say_why: bool = False) -> list[int]:
    """Those of the wanted shards that are not there, have no checksum, or are not as they were written, which can be said."""
    paths = {index: shard_path(directory, index) for index in wanted}
    checksums = read_checksums(directory)
    wrong = wrong_files(directory, {path.name: checksums[path.name] for path in paths.values() if path.name in checksums and path.exists()})
    for name, reason in wrong.items() if say_why else ():
        warn(f"{directory / name}: {reason}; it is replaced")
    return [index for index, path in paths.items() if path.name not in checksums or path.name in wrong or not path.exists()]


def write_shard(path: Path, texts: Iterable[str], keep_checksum: bool = False) -> None:
    """Write documents as one zstd parquet file with row groups of 1,024; complete or absent, its checksum kept beside it if asked."""
    with atomic_path(path) as aside:
        with aside.open("wb") as file:
            write_parquet(file, texts)
        if keep_checksum:
            write_checksums(path.parent, {**read_checksums(path.parent), path.name: sha256_file(aside)})


def write_parquet(file: IO[bytes], texts: Iterable[str]) -> None:
    """Write documents as parquet to an open file; it is a Python file so that an OSError keeps its errno."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([("text", pa.string())])
    remaining = iter(texts)
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        while rows := list(itertools.islice(remaining, ROW_GROUP_DOCUMENTS)):
            writer.write_table(pa.table([pa.array(rows, pa.string())], schema=schema))


def iter_texts(path: Path) -> Iterator[list[str]]:
    """The documents of a shard, one row group after the other. Raises UserError when the file is broken, or not as it was written."""
    if reason := wrong_file(path):
        raise _broken(path, reason)
    with path.open("rb") as file:
        try:
            parquet = open_parquet(file)
            for group in range(parquet.num_row_groups):
                yield [text for text in parquet.read_row_group(group, columns=["text"]).column(0).to_pylist() if text is not None]
        except BrokenParquetError as error:
            raise _broken(path, str(error)) from error
        except _arrow_errors() as error:
            if isinstance(error, OSError) and error.errno:
                raise
            raise _broken(path, "it is damaged") from error


def count_rows(path: Path) -> int:
    """The number of documents of a shard, from its footer. Raises UserError when the file is broken."""
    with path.open("rb") as file:
        try:
            return int(open_parquet(file).metadata.num_rows)
        except BrokenParquetError as error:
            raise _broken(path, str(error)) from error


class BrokenParquetError(Exception):
    """A file that is no complete parquet file with a column `text` of strings."""


def open_parquet(file: IO[bytes]) -> Any:
    """A `pyarrow.parquet.ParquetFile` with a column `text`. Raises BrokenParquetError, in a few words, when it is not one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        parquet = pq.ParquetFile(file)
        schema = parquet.schema_arrow
    except _arrow_errors() as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise BrokenParquetError("it is truncated, or no parquet file") from error
    if "text" not in schema.names:
        raise BrokenParquetError(f"it has no column `text`, only {', '.join(schema.names) or 'none'}")
    if not (pa.types.is_string(kind := schema.field("text").type) or pa.types.is_large_string(kind)):
        raise BrokenParquetError(f"its column `text` holds {kind}, not strings")
    return parquet


def _arrow_errors() -> tuple[type[BaseException], ...]:
    import pyarrow as pa

    return (pa.ArrowException, OSError)


def _broken(path: Path, reason: str) -> UserError:
    """Broken shards can be made or fetched again: say with which command."""
    name = path.parent.name
    data = read_record(path.parent).get("data") or (name if name in NAMED else "path:DIR")
    again = "fetches" if name in NAMED and NAMED[name].repo else "makes"
    return UserError(f"cannot read {path}: {reason}; give `python -m scripts.dataset --data {data}` again, which {again} it again")
