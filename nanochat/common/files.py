"""Files that are complete or absent: written aside, flushed to disk, then renamed."""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

OS_ERROR = re.compile(r"\(os error (\d+)\)")  # how safetensors, which is Rust, spells an errno


def fsync_path(path: Path) -> None:
    """Flush a file or a directory to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write a file or a directory at; it takes the name `path` only when all went well.

    A directory that already stands at `path` is replaced. After an error nothing is left behind; an OSError names `path` where it
    named no file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    remove(aside)  # of a killed process that had the same number
    try:
        yield aside
        publish(aside, path)
    except OSError as error:
        if error.errno and error.filename is None:
            error.filename = str(path)
        raise
    finally:
        remove(aside)


def publish(aside: Path, path: Path) -> None:
    """Flush the file or directory `aside` to disk and give it the name `path` beside it; a directory that stands there is replaced."""
    for each in [*aside.rglob("*"), aside] if aside.is_dir() else [aside]:
        fsync_path(each)
    if aside.is_dir() and path.exists():
        old = _out_of_the_way(path)
        aside.rename(path)
        remove(old)
    else:
        aside.replace(path)
    fsync_path(path.parent)


def discard(path: Path) -> None:
    """Remove a directory that others take for complete as long as it has its name: the name goes first."""
    remove(_out_of_the_way(path))


def _out_of_the_way(path: Path) -> Path:
    return path.rename(path.with_name(f".{path.name}.{os.getpid()}.old"))


def remove(path: Path) -> None:
    """Remove a file or a directory, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def remove_leftovers(directory: Path) -> None:
    """Remove what killed processes left half-written in a directory that no other process writes to now."""
    for pattern in (".*.tmp", ".*.old"):
        for left in directory.glob(pattern):
            remove(left)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    try:
        data = text.encode()
    except UnicodeEncodeError:  # the name of a file that is no UTF-8
        data = json.dumps(value, indent=2).encode()
    with atomic_path(path) as aside:
        aside.write_bytes(data + b"\n")


def append_line(path: Path, line: str) -> None:
    """Add a line to a file, wholly or, where the disk refuses it, not at all."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        size, data = os.fstat(descriptor).st_size, (line + "\n").encode()
        try:
            while data:
                data = data[os.write(descriptor, data) :]
        except OSError as error:
            os.ftruncate(descriptor, size)
            error.filename = str(path)
            raise
    finally:
        os.close(descriptor)


def full_disk(error: BaseException) -> OSError | None:
    """What says that a disk, or what a user may have of it, is full: the error itself, or what it came of."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError) and link.errno in (errno.ENOSPC, errno.EDQUOT):
            return link
        link = link.__cause__ or link.__context__
    return None


def read_json(path: Path) -> Any:
    """The value of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def save_safetensors(path: Path, tensors: dict[str, Any], metadata: dict[str, str] | None = None) -> None:
    """Write tensors, on CPU and contiguous, as a safetensors file. Raises OSError with its errno when the disk refuses it."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(tensors, path, metadata=metadata)
        path.chmod(0o666 & ~_umask())  # safetensors leaves a file that its owner alone can read
    except SafetensorError as error:
        if found := OS_ERROR.search(str(error)):
            number = int(found[1])
            raise OSError(number, os.strerror(number), str(path)) from error
        raise
