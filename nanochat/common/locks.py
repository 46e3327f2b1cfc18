"""One process at a time, also where the base directory lies on a network file system."""

import contextlib
import errno
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nanochat.common.console import say
from nanochat.common.errors import UserError

NO_FLOCK = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}
"""What file systems answer that know no flock."""
LOCKS_AWAY_S = 60.0
"""That a network file system's server of locks may not answer; whoever went on without it meanwhile could be a second holder."""
POLL_S = 0.05


class TakenError(Exception):
    """Another process has held a lock for longer than it was waited for."""

    def __init__(self, path: Path, hint: str = ""):
        """hint: where a file marks the lock, who has left it and what to do should that process be gone; to be put after a word."""
        super().__init__(f"{path} is held{hint}")
        self.hint = hint


@contextlib.contextmanager
def locked(path: Path, patience_s: float = -1.0, waiting: str = "") -> Iterator[None]:
    """Hold the lock at `path`, for which others are waited `patience_s` seconds (-1: for ever); `waiting` is said when one has it.

    The kernel's lock where the file system has one; elsewhere a file `….held` beside it that names host and process, and that is taken
    over when a process of this host that is gone has left it. Raises TakenError, and UserError where locks are not answered for.
    """
    try:
        lock = _acquire(path, 0.0 if waiting else patience_s)
    except TakenError as taken:
        if not waiting:
            raise
        say(f"{waiting}{taken.hint}")
        lock = _acquire(path, patience_s)
    try:
        yield
    finally:
        lock.release()


def _acquire(path: Path, patience_s: float) -> Any:
    from filelock import FileLock, Timeout

    lock = FileLock(path, fallback_to_soft=False)  # its own fallback would take the file that a kernel's lock has left for a holder
    began = answered = time.monotonic()
    while True:
        now = time.monotonic()
        try:
            lock.acquire(blocking=False)
            return lock
        except Timeout:
            answered = now
            if 0 <= patience_s <= now - began:
                raise TakenError(path) from None
        except OSError as error:
            if error.errno in NO_FLOCK:
                return _acquire_marker(path.with_name(f"{path.name}.held"), patience_s)
            if error.errno != errno.ENOLCK:
                raise
            if now - answered >= LOCKS_AWAY_S:
                raise UserError(
                    f"{path} cannot be locked ({error.strerror}): the file system's server of locks does not answer; "
                    "have it started, mount with local_lock=flock where one machine alone uses it, or set another NANOCHAT_BASE_DIR"
                ) from None
        time.sleep(POLL_S)


def _acquire_marker(marker: Path, patience_s: float) -> Any:
    from filelock import SoftFileLock, Timeout

    lock = SoftFileLock(marker)
    try:
        lock.acquire(timeout=patience_s if patience_s < 0 else max(patience_s, 4 * POLL_S))  # one try may be needed to clear a dead one's
        return lock
    except Timeout:
        raise TakenError(marker, f" ({_holder(marker)}; should it be gone, remove {marker})") from None


def _holder(marker: Path) -> str:
    """Who has left a marker, as far as it tells."""
    try:
        process, host = marker.read_text(encoding="utf-8", errors="replace").split()[:2]
    except (OSError, ValueError):
        return "a process that left no name"
    return f"process {process} on {host}"
