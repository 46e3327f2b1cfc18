"""Documents out of a user's own files, streamed: .txt and .md, .jsonl (plain, gzip, zstd), .parquet."""

import gzip
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from nanochat.common.errors import UserError
from nanochat.data.text_shards import BrokenParquetError, open_parquet

WHOLE_FILE = (".txt", ".md")
LINES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
SUFFIXES = (*WHOLE_FILE, *LINES, ".parquet")
CHUNK_BYTES = 1 << 20


def list_text_files(root: Path, without: Path) -> list[Path]:
    """The files under `root` that hold text, sorted; or `root` itself when it is one. Hidden ones and those under `without` are left out.

    Raises UserError when `root` is not there, or holds no such file.
    """
    if root.is_file() and root.name.lower().endswith(SUFFIXES):
        return [root]
    if not root.is_dir():
        raise UserError(
            f"--data path:{root}: {'is no file of text' if root.exists() else 'there is no such directory'} (text is {_kinds()})"
        )
    found = []
    for directory, subdirectories, names in os.walk(root, onerror=_raise):
        here = Path(directory)
        subdirectories[:] = [name for name in subdirectories if not name.startswith(".") and here / name != without]
        found += [here / name for name in names if name.lower().endswith(SUFFIXES) and not name.startswith(".")]
    if not found:
        raise UserError(f"--data path:{root}: there is no text in it (no {_kinds()})")
    return sorted(found, key=lambda path: path.relative_to(root).parts)


def read_documents(path: Path) -> Iterator[tuple[str, int]]:
    """Documents of one file that are not blank, each with the bytes of the file that were read so far.

    Raises UserError, naming the file and the line where there are lines, for anything that is no text.
    """
    name = path.name.lower()
    if name.endswith(".parquet"):
        documents = _parquet_documents(path)
    elif name.endswith(LINES):
        documents = _json_documents(path)
    else:
        documents = _whole_file(path)
    return ((text, position) for text, position in documents if text.strip())


def _whole_file(path: Path) -> Iterator[tuple[str, int]]:
    data = path.read_bytes()
    try:
        yield data.decode("utf-8-sig"), len(data)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line}, byte {error.start}: not valid UTF-8 ({error.reason}); convert the file to UTF-8") from None


def _json_documents(path: Path) -> Iterator[tuple[str, int]]:
    with path.open("rb") as file:
        for number, line in enumerate(_lines(path, file), start=1):
            where = f"{path}, line {number}"
            try:
                string = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise UserError(f"{where}: not valid UTF-8 (byte {error.start} of the line: {error.reason})") from None
            if not string.strip():
                continue
            try:
                value = json.loads(string)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{where}: not JSON ({error}): {_shorten(string)}") from None
            text = value.get("text") if isinstance(value, dict) else None
            if not isinstance(text, str):
                raise UserError(f"{where}: no string field `text` in {_shorten(string)}")
            if not _encodable(text):
                raise UserError(f"{where}: the text holds half of a surrogate pair, which is no valid UTF-8")
            yield text, file.tell()


def _lines(path: Path, file: IO[bytes]) -> Iterator[bytes]:
    """Lines of a file that may be compressed. Raises UserError when what is compressed is damaged."""
    if path.name.lower().endswith(".zst"):
        yield from _split(_zstd_chunks(path, file))
    elif path.name.lower().endswith(".gz"):
        with gzip.GzipFile(fileobj=file) as unpacked:
            try:
                yield from unpacked
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise UserError(f"{path}: truncated or no gzip file ({error})") from None
    else:
        yield from file


def _zstd_chunks(path: Path, file: IO[bytes]) -> Iterator[bytes]:
    """Unpacked bytes of one or more zstd frames; a last frame that does not end is an error (`stream_reader` would pass it)."""
    import zstandard

    unpacker = zstandard.ZstdDecompressor().decompressobj()
    begun = False
    while chunk := file.read(CHUNK_BYTES):
        while chunk:
            try:
                yield unpacker.decompress(chunk)
            except zstandard.ZstdError as error:
                raise UserError(f"{path}: damaged or no zstd file ({error})") from None
            begun = not unpacker.eof
            chunk = unpacker.unused_data if unpacker.eof else b""
            if unpacker.eof:
                unpacker = zstandard.ZstdDecompressor().decompressobj()
    if begun:
        raise UserError(f"{path}: truncated zstd file")


def _split(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Lines out of chunks of bytes."""
    rest: list[bytes] = []
    for chunk in chunks:
        first, *others = chunk.split(b"\n")
        rest.append(first)
        if others:
            yield b"".join(rest)
            yield from others[:-1]
            rest = [others[-1]]
    if last := b"".join(rest):
        yield last


def _parquet_documents(path: Path) -> Iterator[tuple[str, int]]:
    import pyarrow as pa

    size = path.stat().st_size
    with path.open("rb") as file:
        try:
            parquet = open_parquet(file)
            rows, done = max(parquet.metadata.num_rows, 1), 0
            for batch in parquet.iter_batches(batch_size=1024, columns=["text"]):
                for text in batch.column(0).to_pylist():
                    done += 1
                    yield text or "", size * done // rows
        except BrokenParquetError as error:
            raise UserError(f"{path}: {error}") from None
        except (pa.ArrowException, UnicodeDecodeError) as error:
            raise UserError(f"{path}: damaged parquet file ({_shorten(str(error))})") from None
        except OSError as error:
            if error.errno:
                raise
            raise UserError(f"{path}: damaged parquet file ({_shorten(str(error))})") from None


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shorten(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 80 else text[:77] + "..."


def _kinds() -> str:
    return ", ".join(("*.txt", "*.md", "*.jsonl", "*.jsonl.gz", "*.jsonl.zst", "*.parquet"))


def _raise(error: OSError) -> None:
    raise error
