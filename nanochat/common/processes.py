"""What a process asks of the system: to end with the one that started it, and to keep the memory that it frees."""

import ctypes
import os
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # <malloc.h>
KEPT_BYTES = 2**30
DIES_WITH = "NANOCHAT_DIES_WITH"
"""Variable in which a run script or a launcher says its own process number, for what it starts."""


def die_with_starter() -> None:
    """Let the kernel end this process when its starter dies: at once under a launcher, which would start a rank again beside it; by
    SIGTERM, so that it can save, under a run script. Where that one is dead already, now. On Linux; elsewhere nothing."""
    if sys.platform != "linux":
        return
    starter = os.environ.get(DIES_WITH, "")
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _end_with_starter(signal.SIGKILL)
    elif starter == str(os.getppid()):
        _end_with_starter(signal.SIGTERM)
    if starter and not _runs(starter):
        os.kill(os.getpid(), signal.SIGKILL)


def _runs(number: str) -> bool:
    """Whether there is such a process, and it has not ended."""
    try:
        state = Path(f"/proc/{number}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def die_at_once_with_starter(starter: int) -> None:
    """Let the kernel kill this process when its starter, of that number, dies; it ends where that one is dead already. On Linux;
    elsewhere nothing."""
    if sys.platform == "linux":
        _end_with_starter(signal.SIGKILL)
        if os.getppid() != starter:
            os.kill(os.getpid(), signal.SIGKILL)


def _end_with_starter(number: int) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)


def keep_freed_memory() -> None:
    """Have malloc keep what is freed for what is asked for next, up to 1 GiB: a training step on a CPU otherwise spends up to half of
    its time on handing the same pages back to the kernel and clearing them anew. With glibc; elsewhere nothing."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
