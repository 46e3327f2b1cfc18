"""The names under which a stage's checkpoints lie, and which of them are kept. Imports nothing heavy."""

import re
from pathlib import Path

KEEP = 2
LATEST_FILE = "latest"
COPIED_FILE = "copied"
"""Names the checkpoint that a mirror is being given, which is not removed meanwhile."""


def standing(directory: Path) -> dict[int, Path]:
    """The checkpoints that stand in a directory, by their steps, oldest first."""
    return {int(path.name[-8:]): path for path in sorted(directory.glob("step_*")) if re.fullmatch(r"step_\d{8}", path.name)}


def named(directory: Path, name: str) -> str:
    """The checkpoint that the file LATEST_FILE or COPIED_FILE names; empty where there is no such file."""
    path = directory / name
    return path.read_text("utf-8", "replace").strip() if path.is_file() else ""


def kept_steps(steps: set[int], newest: int, keep_every: int) -> set[int]:
    """Of the steps whose checkpoints stand, those that are kept: the newest, the one before it, and those that `keep_every` divides.

    Those after the newest are of a past that the run has gone back before.
    """
    older = sorted(step for step in steps if step < newest)
    return {newest, *older[1 - KEEP :], *(step for step in older if keep_every > 0 and step % keep_every == 0)}
