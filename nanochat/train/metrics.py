"""What a run reports as it goes: metrics.jsonl, the live line, and wandb when asked."""

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat.common.console import PLAIN_INTERVAL_S, is_terminal, say, warn
from nanochat.common.files import atomic_path
from nanochat.common.secrets import hide, without_secrets
from nanochat.train.wandb_run import ALERT, WandbRun

Row = Mapping[str, Any]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; a line that is none, such as the last one of a killed process, is left out.

    So are those of steps that a run has gone back before, but for what they alert to.
    """
    rows: list[dict[str, Any]] = []
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                row = json.loads(line)
                if isinstance(row, dict) and isinstance(row.get("step"), int):
                    if isinstance(back := row.get("back_to"), int):
                        rows = [each for each in rows if each["step"] <= back or ALERT in each]
                    rows.append(row)
    return rows


def hms(seconds: float) -> str:
    """A duration as people read it: 45s, 12m05s, 3h07m."""
    s = round(seconds)
    if s < 60:
        return f"{s}s"
    return f"{s // 60}m{s % 60:02d}s" if s < 3600 else f"{s // 3600}h{s % 3600 // 60:02d}m"


@dataclass(frozen=True)
class StepLine:
    """What the live line shows besides the row: the horizon and the price."""

    num_iterations: int
    """Steps of the whole run."""
    usd_per_hour: float
    """Price of all GPUs for an hour; 0 where there are none."""

    def text(self, row: Row, usual_step_s: float) -> str:
        """One line about a step; what is left is told from the time that steps usually take."""
        left_s = (self.num_iterations - row["step"]) * usual_step_s
        parts = [
            f"step {row['step']:>{len(str(self.num_iterations))}}/{self.num_iterations}",
            f"loss {row['loss']:.4f}",
            f"{row['tok_per_sec']:,.0f} tok/s",
            f"MFU {row['mfu']:.1%}" if row["mfu"] is not None else "",
            f"{row['mem_gib']:.1f} GiB",
            f"{hms(row['elapsed_s'])} gone, {hms(left_s)} left",
            f"${row['elapsed_s'] / 3600 * self.usd_per_hour:,.2f}" if self.usd_per_hour else "",
        ]
        return " | ".join(part for part in parts if part)


class Metrics:
    """Rows of a stage, kept in metrics.jsonl and shown; only the first rank makes one."""

    def __init__(self, directory: Path, wandb_run: str, resume_step: int):
        """Rows after `resume_step` are dropped: those steps are done again. wandb_run: name of the run in wandb; empty for none."""
        self.path = directory / "metrics.jsonl"
        self.rows = [row for row in read_metrics(self.path) if row["step"] <= resume_step]
        with atomic_path(self.path) as aside:
            aside.write_text("".join(json.dumps(row) + "\n" for row in self.rows), encoding="utf-8")
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        self._unwritten = b""
        self._wandb = WandbRun(directory, hide(wandb_run), resume_step) if wandb_run else None
        self._live: Any = None
        self._shown_s = float("-inf")
        if is_terminal():
            from rich.live import Live

            self._live = Live(refresh_per_second=4)
            self._live.start()

    def log(self, row: Row) -> None:
        """Keep a row; it has a `step`. Where the disk takes no more, rows are kept in memory until it does again, with one warning."""
        failed_before = bool(self._unwritten)
        self._unwritten += (json.dumps(without_secrets(row)) + "\n").encode()
        try:
            self._write()
        except OSError as error:
            if not failed_before:
                warn(f"{self.path} cannot be written ({error.strerror}); training goes on, and its rows are kept until it can be")

    def _write(self) -> None:
        """Append what is not written yet; of what is written in part the rest stays."""
        while self._unwritten:
            self._unwritten = self._unwritten[os.write(self._file, self._unwritten) :]

    def alert(self, step: int, text: str, **more: int) -> None:
        """Say something that somebody should know of: on standard error, in metrics.jsonl, and by wandb to whoever it tells."""
        warn(text)
        self.log({"step": step, ALERT: text, **more})

    def show(self, line: str, elapsed_s: float, force: bool = False) -> None:
        """Show a line about a step: in place on a terminal, elsewhere printed every ten seconds."""
        if self._live is not None:
            self._live.update(line)
        elif force or elapsed_s - self._shown_s >= PLAIN_INTERVAL_S:
            self._shown_s = elapsed_s
            say(line)

    def close(self) -> None:
        """Write and send everything, as far as the disk and wandb take it."""
        if self._live is not None:
            self._live.stop()
        try:
            self._write()
        except OSError as error:
            warn(f"the last rows are not in {self.path} ({error.strerror})")
        os.close(self._file)
        if self._wandb is not None:
            self._wandb.close()
