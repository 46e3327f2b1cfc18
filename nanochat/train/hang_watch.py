"""A rank that hangs holds up all others, silently and at full price: this finds it, writes down where every rank stands, and ends them."""

import contextlib
import faulthandler
import os
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Self

LONGER = 10.0
"""How many times as long as a part of a step other work may take: a first step, which compiles, an evaluation, a save."""
GRACE_S = 5.0  # the ranks' last signs of life differ by moments, and each is to write its stacks
LOOK_EVERY_S = 0.5


class HangWatch:
    """Ends this process with status 1 when it shows no sign of life for too long; all ranks wait for one that hangs, so all end.

    The stacks of its threads are then in `DIRECTORY/rank_N.txt`. Under a launcher that starts them again the run goes on.
    """

    def __init__(self, timeout_s: float, directory: Path, rank: int):
        """timeout_s: seconds without a sign of life; 0 or less for no watch. directory: where the stacks go; made when needed."""
        self.timeout_s, self.path, self.rank = timeout_s, directory / f"rank_{rank}.txt", rank
        self._doing, self._limit_s, self._alive_s = "", float("inf"), time.monotonic()
        self._file: IO[str] | None = None
        self._done = threading.Event()

    def __enter__(self) -> Self:
        if self.timeout_s > 0:
            with contextlib.suppress(OSError):  # a full disk: it is still found, without stacks
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self.path.open("a")  # what an earlier start has written stays
            threading.Thread(target=self._watch, daemon=True, name="hang watch").start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._done.set()
        faulthandler.cancel_dump_traceback_later()
        if self._file:
            self._file.close()
            if self.path.stat().st_size == 0:
                self.path.unlink()

    def alive(self, doing: str, times: float = 1.0) -> None:
        """A sign of life, and what comes next: `doing`, which may take `times` as long as usual."""
        self._doing, self._limit_s, self._alive_s = doing, self.timeout_s * times, time.monotonic()
        if self._file:
            # For what keeps Python itself from running: the interpreter's own watch, a thread without Python.
            faulthandler.dump_traceback_later(self._limit_s + GRACE_S / 2, exit=True, file=self._file)

    def _watch(self) -> None:
        while not self._done.wait(LOOK_EVERY_S):
            if time.monotonic() - self._alive_s <= self._limit_s:
                continue
            if self._file:
                faulthandler.cancel_dump_traceback_later()
                faulthandler.dump_traceback(self._file)
                self._file.flush()
            sys.stderr.write(
                f"error: rank {self.rank}: no progress for {self._limit_s:.0f} s in {self._doing}: one of the ranks hangs; where each "
                f"stands is in {self.path.parent}; the same command goes on from the last checkpoint\n"
            )
            sys.stderr.flush()
            time.sleep(GRACE_S)
            os._exit(1)
