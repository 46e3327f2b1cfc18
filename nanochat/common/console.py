"""What a person reads: plain lines in a log, a live line on a terminal. Only the first rank speaks."""

import os
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

PLAIN_INTERVAL_S = 10.0


def is_first_rank() -> bool:
    """Whether this process is rank 0 of its job (always so outside torchrun)."""
    return int(os.environ.get("RANK", "0")) == 0


def is_terminal() -> bool:
    """Whether output goes to a terminal where a live line can be redrawn; `screen` keeps a log, so not there."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb" and "STY" not in os.environ


def say(message: str) -> None:
    """Print a line on standard output, from the first rank only; work goes on where nobody reads it any more."""
    if is_first_rank():
        try:
            print(message, flush=True)
        except OSError:  # a closed pipe, or the terminal is gone
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def warn(message: str) -> None:
    """Print a warning on standard error, from the first rank only."""
    if is_first_rank():
        print(f"warning: {message}", file=sys.stderr, flush=True)


def show_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table whose first column is words and whose others are numbers: drawn on a terminal, aligned text elsewhere."""
    if not is_first_rank():
        return
    if is_terminal():
        from rich.console import Console
        from rich.table import Table

        table = Table(*header[:1])
        for title in header[1:]:
            table.add_column(title, justify="right")
        for row in rows:
            table.add_row(*row)
        Console().print(table)
        return
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in [header, *rows]:
        first, *others = [
            cell.ljust(width) if at == 0 else cell.rjust(width) for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        say("  ".join([first, *others]))


class Progress:
    """Progress over a known amount of work: a bar on a terminal, elsewhere a plain line every ten seconds and at the end.

    with Progress("tokenizing", total=1000, unit="docs") as progress:
        progress.advance(10)
    """

    def __init__(self, description: str, total: float, unit: str = ""):
        self.description, self.total, self.unit = description, total, unit
        self.done = 0.0
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        self._start = self._last = time.monotonic()
        if is_first_rank() and is_terminal():
            from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[status]}"),
            )
            self._task = self._bar.add_task(self.description, total=self.total, status="")
            self._bar.start()
        return self

    def advance(self, amount: float = 1, status: str = "") -> None:
        """Count `amount` more as done; `status` is shown behind the bar."""
        self.done += amount
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, status=status)
        elif time.monotonic() - self._last >= PLAIN_INTERVAL_S:
            self._last = time.monotonic()
            say(self._line(status))

    def _line(self, status: str) -> str:
        elapsed_s = time.monotonic() - self._start
        share = self.done / self.total if self.total else 1.0
        left_s = elapsed_s / share - elapsed_s if share else 0.0
        amount = f"{self.done:,.0f}/{self.total:,.0f} {self.unit} ({min(share, 1):.0%})"
        return f"{self.description}: {amount}, {elapsed_s:.0f} s, {max(left_s, 0):.0f} s left {status}".rstrip()

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif kind is None:
            say(f"{self.description}: {self.done:,.0f} {self.unit} in {time.monotonic() - self._start:.1f} s")
