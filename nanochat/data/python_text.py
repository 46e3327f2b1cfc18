"""The `python` source: text that is on every machine that can run this, from the Python installation itself.

Prose first (help topics, and the docstrings of the standard library and of the installed packages), then sources. The order comes
from hashes of the files' names, so the same installation gives the same bytes. The validation shard is drawn before all others and
is prose only; a source file that holds a docstring of it is left out.
"""

import collections
import dataclasses
import hashlib
import itertools
import multiprocessing
import os
import shutil
import signal
import site
import sys
import sysconfig
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

from nanochat.common.console import Progress, say, warn
from nanochat.common.errors import UserError
from nanochat.common.files import remove_leftovers, write_json
from nanochat.common.paths import data_dir
from nanochat.data.docstring_text import PythonFile, Unseen, read_prose, read_source, split_lines, text_hash
from nanochat.data.sources import PYTHON, Source
from nanochat.data.text_shards import missing_shards, read_record, shard_path, write_shard

PYTHON_SHARDS = PYTHON.val_index + 1
SHARD_BYTES = 1_100_000
MAX_DOCUMENT_BYTES = 100_000
SEED = 1337
RECIPE = 1  # to be raised when the text of the same files comes out otherwise
BLOCK_FILES = 256
SKIPPED_DIRECTORIES = {"__pycache__", "test", "tests", "idle_test", "site-packages", "dist-packages", "node_modules"}
OWN_PACKAGES = {"nanochat", "scripts"}


@dataclasses.dataclass(frozen=True)
class Document:
    """A document of the stream, with the hashes of the docstrings in it."""

    text: str
    docstrings: frozenset[bytes]
    is_prose: bool


def python_roots() -> dict[str, Path]:
    """The directories of the running interpreter that hold Python files, by a label that does not depend on where they lie."""
    paths = sysconfig.get_paths()
    packages = [paths["purelib"], paths["platlib"], *site.getsitepackages(), *(path for path in sys.path if path.endswith("-packages"))]
    roots = {"stdlib": Path(paths["stdlib"])}
    for path in map(Path, dict.fromkeys(packages)):
        if path.is_dir() and path not in roots.values():
            roots[f"packages{len(roots)}"] = path
    return roots


def list_files(roots: dict[str, Path]) -> dict[str, Path]:
    """Python files by name relative to their root, shuffled by the seed; without tests, and of equal names the first root's."""
    found: dict[str, Path] = {}
    for label, root in roots.items():
        for directory, subdirectories, names in os.walk(root):
            here = Path(directory)
            skipped = SKIPPED_DIRECTORIES | (OWN_PACKAGES if here == root else set())
            subdirectories[:] = [name for name in subdirectories if name not in skipped]
            prefix = "stdlib" if label == "stdlib" else "packages"
            for name in names:
                if name.endswith(".py") and not name.startswith("test_") and not name.endswith("_test.py") and name != "conftest.py":
                    found.setdefault(f"{prefix}/{(here / name).relative_to(root).as_posix()}", here / name)
    return {name: found[name] for name in sorted(found, key=_order)}


def fingerprint(files: dict[str, Path]) -> dict[str, Any]:
    """What the text depends on: the interpreter, and the names and sizes of the files."""
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(f"{name} {files[name].stat().st_size}\n".encode("utf-8", "surrogateescape"))
    return {"python": sys.version.split()[0], "files": len(files), "sha256": digest.hexdigest()}


def is_there(num_shards: int) -> bool:
    """Whether the validation shard and the first `num_shards` train shards lie complete on disk."""
    directory = data_dir(PYTHON.name)
    record = read_record(directory)
    wanted = [PYTHON.val_index, *range(num_shards)]
    same = (record.get("recipe"), record.get("seed"), record.get("shard_bytes")) == (RECIPE, SEED, SHARD_BYTES)
    return same and not missing_shards(directory, wanted)


def make(source: Source, num_shards: int, num_workers: int, roots: dict[str, Path] | None = None) -> None:
    """Make the validation shard and train shards 0 to `num_shards` - 1 where they are not there, with `num_workers` processes.

    `roots` stands in for the running interpreter's directories. Raises UserError when the machine holds no text at all.
    """
    directory = data_dir(source.name)
    files = list_files(python_roots() if roots is None else roots)
    made_from = {"data": source.data, "recipe": RECIPE, "seed": SEED, "shard_bytes": SHARD_BYTES, **fingerprint(files)}
    record = read_record(directory)
    if any(record.get(key) != value for key, value in made_from.items()):
        if record:
            say("python: the installed packages, or how text is made from them, changed since; all shards are made anew")
        shutil.rmtree(directory, ignore_errors=True)
        record = dict(made_from)
        write_json(directory / "source.json", record)
    remove_leftovers(directory)
    limit = record.get("train_shards_possible", num_shards)
    wanted = [source.val_index, *range(min(num_shards, limit))]
    missing = missing_shards(directory, wanted, say_why=True)
    if missing:
        possible = _make_shards(directory, wanted, missing, files, num_workers)
        if possible < num_shards:
            limit = possible
            write_json(directory / "source.json", {**record, "train_shards_possible": possible})
    if limit < num_shards:
        warn(f"this machine's Python text gives {limit} train shards of the {num_shards} asked for; go on with those")


def _make_shards(directory: Path, wanted: list[int], missing: list[int], files: dict[str, Path], num_workers: int) -> int:
    """Write the missing ones of the wanted shards; how many train shards the text sufficed for."""
    held_out: set[bytes] = set()
    stream = documents(files, held_out, num_workers)
    total_mb = len(wanted) * SHARD_BYTES / 1e6
    try:
        with Progress(f"making python text with {num_workers} processes", total_mb, "MB") as progress:
            for index in wanted:
                is_val = index == wanted[0]
                taken = list(_take(stream, prose_only=is_val))
                size = sum(len(document.text.encode()) for document in taken)
                if is_val and not taken:
                    raise UserError("no Python files with docstrings on this machine: use --data path:DIR or --data climbmix")
                if not is_val and size < SHARD_BYTES:
                    return index
                if is_val:
                    held_out.update(*(document.docstrings for document in taken))
                if index in missing:
                    write_shard(shard_path(directory, index), [document.text for document in taken], keep_checksum=True)
                progress.advance(size / 1e6)
    finally:
        stream.close()
    return len(wanted) - 1


def _take(stream: Iterator[Document], prose_only: bool) -> Iterator[Document]:
    """Documents until a shard is full."""
    size = 0
    while size < SHARD_BYTES and (document := next(stream, None)) is not None:
        if prose_only and not document.is_prose:
            return
        size += len(document.text.encode())
        yield document


def documents(files: dict[str, Path], held_out: set[bytes], num_workers: int) -> Generator[Document, None, None]:
    """All documents: prose, then the sources that hold none of the docstrings `held_out` (filled by the reader meanwhile)."""
    unseen = Unseen()
    topics = {f"topics/{name}": text for name, text in _help_topics().items()}
    names = sorted([*topics, *files], key=_order)
    for name, file in _read_all(names, files, read_prose, num_workers):
        texts = [topics[name]] if name in topics else file.docstrings if file else []
        fresh = [text for text in texts if unseen.take(text)]
        if fresh:
            docstrings = frozenset(map(text_hash, fresh))
            for piece in split_lines("\n\n".join(fresh), MAX_DOCUMENT_BYTES):
                yield Document(piece, docstrings, is_prose=True)
    seen: set[bytes] = set()
    for _, file in _read_all(list(files), files, read_source, num_workers):
        if file is None or (digest := text_hash(file.source)) in seen:
            continue
        seen.add(digest)
        docstrings = frozenset(map(text_hash, file.docstrings))
        if docstrings.isdisjoint(held_out):
            for piece in split_lines(file.source, MAX_DOCUMENT_BYTES):
                yield Document(piece, docstrings, is_prose=False)


def _read_all(
    names: Iterable[str], files: dict[str, Path], read: Callable[[Path], PythonFile | None], num_workers: int
) -> Iterator[tuple[str, PythonFile | None]]:
    """`read` of the file of every name, in order, by several processes; None for a name that is no file's. Reads little ahead."""
    if num_workers == 1:
        yield from ((name, read(files[name]) if name in files else None) for name in names)
        return
    from concurrent.futures import ProcessPoolExecutor

    blocks = _batched(names, BLOCK_FILES)
    with ProcessPoolExecutor(num_workers, multiprocessing.get_context("spawn"), initializer=_start_worker) as pool:
        ahead: collections.deque[tuple[tuple[str, ...], Iterator[PythonFile | None]]] = collections.deque()
        try:
            for block in blocks:
                ahead.append((block, pool.map(read, [files[name] for name in block if name in files], chunksize=4)))
                if len(ahead) > 2:
                    yield from _in_order(*ahead.popleft(), files)
            while ahead:
                yield from _in_order(*ahead.popleft(), files)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _start_worker() -> None:
    """In a worker: leave an interrupt to the parent, and end when the parent is gone, however it went."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _in_order(
    block: tuple[str, ...], results: Iterator[PythonFile | None], files: dict[str, Path]
) -> Iterator[tuple[str, PythonFile | None]]:
    return ((name, next(results) if name in files else None) for name in block)


def _batched(names: Iterable[str], size: int) -> Iterator[tuple[str, ...]]:
    remaining = iter(names)
    while block := tuple(itertools.islice(remaining, size)):
        yield block


def _help_topics() -> dict[str, str]:
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions package it apart
        return {}
    return dict(topics)


def _order(name: str) -> bytes:
    """A sort key that shuffles names by the seed."""
    return hashlib.blake2b(f"{SEED} {name}".encode("utf-8", "surrogateescape"), digest_size=12).digest()
