"""Base training in which one rank hangs once, at the seventh step: `python -m tests.train.hanging RANK HOW FLAGS…`.

HOW: sleeps (as in a system call), stopped (by SIGSTOP), holds (in C code that lets no other thread run).
"""

import ctypes
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from nanochat.common.cli import command
from nanochat.train import trainer
from nanochat.train.settings import BaseTrainSettings
from scripts.base_train import main

HANGS_AT = 7
accumulate = trainer.accumulate_gradients
steps = 0


def sleeps() -> None:
    """Wait for what never comes."""
    time.sleep(1000)


def stopped() -> None:
    """Stand still altogether."""
    os.kill(os.getpid(), signal.SIGSTOP)


def holds() -> None:
    """Let no other thread of this process run Python."""
    ctypes.PyDLL(None).sleep(1000)


def hanging(*args: Any, **kwargs: Any) -> Any:
    """A step's gradients, where this rank comes to that."""
    global steps
    steps += 1
    once = Path(os.environ["NANOCHAT_BASE_DIR"]) / f"hung-{how}"
    if steps == HANGS_AT and os.environ["RANK"] == rank and not once.exists():
        once.touch()
        globals()[how]()
    return accumulate(*args, **kwargs)


if __name__ == "__main__":
    rank, how, *flags = [argument for argument in sys.argv[1:] if argument != "--"]
    trainer.accumulate_gradients = hanging
    sys.argv = ["base_train", *flags]
    command(BaseTrainSettings, main)
