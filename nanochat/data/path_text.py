"""The `path:DIR` source: a user's own files made into shards, streaming, whole or not at all."""

import dataclasses
import hashlib
import heapq
import os
import random
import shutil
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from nanochat.common.console import Progress, say
from nanochat.common.errors import UserError
from nanochat.common.files import atomic_path, write_json
from nanochat.common.paths import base_dir, data_dir
from nanochat.data.file_text import list_text_files, read_documents
from nanochat.data.sources import Source
from nanochat.data.text_shards import missing_shards, read_record, shard_path, write_shard

SHARD_BYTES = 100_000_000
VAL_SHARE = 0.01
MAX_VAL_BYTES = 10_000_000
SEED = 1337


@dataclasses.dataclass(order=True)
class _Held:
    """A held-out document, the next to be given back first: too long ones, then by descending hash."""

    sort_key: tuple[bool, float]
    text: str = dataclasses.field(compare=False)
    size: int = dataclasses.field(compare=False)


class HeldOut:
    """The validation documents of a stream: those with the lowest hashes, about 1 %, at least one, at most 10 MB.

    The hash sees the text alone, so that copies of a document end on the same side.
    """

    def __init__(self, share: float = VAL_SHARE, max_bytes: int = MAX_VAL_BYTES):
        self.share, self.max_bytes = share, max_bytes
        self._heap: list[_Held] = []
        self._bytes = 0

    def offer(self, text: str) -> Iterator[str]:
        """Take a document into account; yields those that are to be trained on (it, or others that it supersedes)."""
        data = text.encode()
        rank = int.from_bytes(hashlib.blake2b(b"%d " % SEED + data, digest_size=8).digest()) / 2**64
        heapq.heappush(self._heap, _Held((len(data) <= self.max_bytes, -rank), text, len(data)))
        self._bytes += len(data)
        while len(self._heap) > 1 and (self._bytes > self.max_bytes or -self._heap[0].sort_key[1] >= self.share):
            yield self.give_back()

    def give_back(self) -> str:
        """The held document that has the least claim to be one, which is no longer held."""
        held = heapq.heappop(self._heap)
        self._bytes -= held.size
        return held.text

    def texts(self) -> list[str]:
        """The documents held now."""
        return [held.text for held in self._heap]


def is_there(source: Source, num_shards: int) -> bool:
    """Whether `num_shards` train shards (-1: all) or more were made of the files as they are now, or of files that are gone."""
    assert source.directory is not None
    record = read_record(data_dir(source.name))
    if not _suffices(record, data_dir(source.name), num_shards):
        return False
    return not source.directory.exists() or record.get("files") == _fingerprint(source, _list_files(source))


def make(source: Source, num_shards: int) -> None:
    """Make all shards, at most `num_shards` for training (-1: no limit), the validation shard last.

    Raises UserError when the directory is not there, holds no text or one document only, or a file is broken.
    """
    directory = data_dir(source.name)
    files = _list_files(source)
    fingerprint = _fingerprint(source, files)
    if record := read_record(directory):
        same = record.get("files") == fingerprint
        damaged = missing_shards(directory, range(int(record.get("val_index", -1)) + 1), say_why=True)
        why = "its files changed since" if not same else "shards are missing" if damaged else "there are fewer shards than asked for"
        say(f"{source.data}: {why}; all are made anew")
    for left in directory.parent.glob(f".{directory.name}.*"):
        if left.suffix in (".tmp", ".old"):  # of a run that was killed; the lock says that nobody else is here
            shutil.rmtree(left, ignore_errors=True)
    with atomic_path(directory) as aside:
        aside.mkdir()
        train_shards, is_all = _write_shards(source, files, aside, num_shards)
        made = {"data": source.data, "seed": SEED, "val_index": train_shards, "is_all": is_all, "files": fingerprint}
        write_json(aside / "source.json", made)


def _write_shards(source: Source, files: list[Path], directory: Path, num_shards: int) -> tuple[int, bool]:
    """Write the train shards, then the validation shard; how many for training, and whether that was all of the text."""
    held_out = HeldOut()
    buffer: list[str] = []
    index = size = documents = 0
    is_all = True
    stream = _read_files(files)
    for document in stream:
        documents += 1
        for text in held_out.offer(document):
            buffer.append(text)
            size += len(text.encode())
        if size >= SHARD_BYTES:
            _write_shuffled(directory, index, buffer)
            buffer, size, index = [], 0, index + 1
            if index == num_shards:
                is_all = next(stream, None) is None
                break
    stream.close()
    if documents == 0:
        raise UserError(f"--data {source.data}: its {len(files)} files hold no text")
    if documents == 1:
        raise UserError(f"--data {source.data}: it holds one document only; at least two are needed, as one is held out for validation")
    if index == 0 and not buffer:
        buffer.append(held_out.give_back())
    if buffer:
        _write_shuffled(directory, index, buffer)
        index += 1
    write_shard(shard_path(directory, index), held_out.texts(), keep_checksum=True)
    return index, is_all


def _write_shuffled(directory: Path, index: int, texts: list[str]) -> None:
    random.Random(f"{SEED} {index}").shuffle(texts)
    write_shard(shard_path(directory, index), texts, keep_checksum=True)


def _read_files(files: list[Path]) -> Generator[str, None, None]:
    """The documents of all files, showing how far it is."""
    sizes = [path.stat().st_size for path in files]
    with Progress(f"reading {len(files):,} files", sum(sizes) / 1e6, "MB") as progress:
        for path, size in zip(files, sizes, strict=True):
            shown = 0
            for text, position in read_documents(path):
                yield text
                progress.advance((position - shown) / 1e6)
                shown = position
            progress.advance((size - shown) / 1e6)


def _list_files(source: Source) -> list[Path]:
    assert source.directory is not None
    return list_text_files(source.directory, without=base_dir())


def _fingerprint(source: Source, files: list[Path]) -> dict[str, Any]:
    """Names, sizes and times of change of the files, in short."""
    digest = hashlib.sha256()
    size = 0
    for path in files:
        status = path.stat()
        size += status.st_size
        digest.update(
            f"{os.path.relpath(path, source.directory)}\0{status.st_size}\0{status.st_mtime_ns}\n".encode("utf-8", "surrogateescape")
        )
    return {"count": len(files), "bytes": size, "sha256": digest.hexdigest()}


def _suffices(record: dict[str, Any], directory: Path, num_shards: int) -> bool:
    made = int(record.get("val_index", -1))
    enough = record.get("is_all") or (num_shards != -1 and made >= num_shards)
    return bool(enough) and made > 0 and not missing_shards(directory, range(made + 1))
