"""One process at a time, also where the base directory lies on a network file system."""

import contextlib
import errno
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nanochat.common.console import say

NO_FLOCK = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP}
"""What file systems answer that know no flock, or whose server of locks is away."""


class TakenError(Exception):
    """Another process has held a lock for longer than it was waited for."""


@contextlib.contextmanager
def locked(path: Path, patience_s: float = -1.0, waiting: str = "") -> Iterator[None]:
    """Hold the lock at `path`, for which others are waited `patience_s` seconds (-1: for ever); `waiting` is said when one has it.

    The kernel's lock where the file system has one; elsewhere a file `….held` beside it that names host and process, and that is taken
    over when a process of this host that is gone has left it. Raises TakenError.
    """
    try:
        lock = _acquire(path, 0.0 if waiting else patience_s)
    except TakenError:
        if not waiting:
            raise
        marker = _marker(path)
        say(f"{waiting} (should it be gone, from another host, remove {marker})" if marker.exists() else waiting)
        lock = _acquire(path, patience_s)
    try:
        yield
    finally:
        lock.release()


def _acquire(path: Path, patience_s: float) -> Any:
    from filelock import FileLock, SoftFileLock, Timeout

    lock: Any = FileLock(path)
    try:
        with warnings.catch_warnings(action="ignore"):  # of the library's own way out
            lock.acquire(timeout=patience_s)
        return lock
    except Timeout:
        raise TakenError(path) from None
    except OSError as error:
        if error.errno not in NO_FLOCK:
            raise
    lock = SoftFileLock(_marker(path))
    try:
        lock.acquire(timeout=patience_s)
    except Timeout:
        raise TakenError(path) from None
    return lock


def _marker(path: Path) -> Path:
    return path.with_name(f"{path.name}.held")
