"""What a model in training says to a few prompts: printed, and kept for the report."""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nanochat.common.console import say
from nanochat.common.files import atomic_path
from nanochat.train.run_directory import StageDirectory

SAMPLES_FILE = "samples.jsonl"


def keep_samples(stage: StageDirectory, step: int, prompts: Sequence[str], texts: Sequence[str]) -> None:
    """Print samples and add them to the stage's samples.jsonl, rows {"step", "prompt", "text"}.

    Those that a killed run had made at this step or later, which is done again, give way to them.
    """
    rows = [row for row in _rows(stage.path / SAMPLES_FILE) if row["step"] < step]
    for prompt, text in zip(prompts, texts, strict=True):
        say(f"sample: {prompt}{text}".replace("\n", "\\n"))
        rows.append({"step": step, "prompt": prompt, "text": text})
    with atomic_path(stage.path / SAMPLES_FILE) as aside:
        aside.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _rows(path: Path) -> list[dict[str, Any]]:
    """The rows that are there and whole."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                rows.append(row)
    return rows
