"""A process that must not outlive the one that started it."""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
DIES_WITH = "NANOCHAT_DIES_WITH"
"""Variable in which a run script says its own process number, for the commands that it starts."""


def die_with_starter() -> None:
    """Let the kernel end this process when its starter dies: at once under a launcher, which would start a rank again beside it; by
    SIGTERM, so that it can save, under a run script. On Linux; elsewhere nothing."""
    if sys.platform != "linux":
        return
    if "TORCHELASTIC_RUN_ID" in os.environ:
        number = signal.SIGKILL
    elif os.environ.get(DIES_WITH) == str(os.getppid()):
        number = signal.SIGTERM
    else:
        return
    _end_with_starter(number)


def die_at_once_with_starter() -> None:
    """Let the kernel kill this process when its starter dies, whatever that was. On Linux; elsewhere nothing."""
    if sys.platform == "linux":
        _end_with_starter(signal.SIGKILL)


def _end_with_starter(number: int) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)
