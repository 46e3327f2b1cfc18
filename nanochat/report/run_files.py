"""What a run has left on disk, read without trust: what is missing or damaged is named, never a failure."""

import contextlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nanochat.common.errors import UserError
from nanochat.common.paths import base_dir

Row = dict[str, Any]


@dataclass
class StageFiles:
    """One stage of a run."""

    name: str
    path: Path
    settings: Row = field(default_factory=dict)
    identity: Row = field(default_factory=dict)
    plan: Row = field(default_factory=dict)
    """step_plan.json: how the step is divided, what was predicted."""
    mixture: Row = field(default_factory=dict)
    steps: list[Row] = field(default_factory=list)
    """Rows of steps, by step."""
    evaluations: list[Row] = field(default_factory=list)
    """Rows of evaluations, in their order."""
    samples: list[Row] = field(default_factory=list)
    """Of the last step that has some."""
    transcript: list[Row] = field(default_factory=list)
    core: Row = field(default_factory=dict)
    chat: Row = field(default_factory=dict)
    base_loss: Row = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    """What is damaged."""

    @property
    def began(self) -> bool:
        """Whether there is anything of it."""
        return bool((self.path / "config.json").exists() or self.steps or self.is_done)

    @property
    def is_done(self) -> bool:
        """Whether its model stands."""
        return (self.path / "model" / "config.json").is_file()

    def series(self, key: str) -> list[tuple[Row, float]]:
        """The rows of steps that have a number under a key, with it."""
        return [(row, float(row[key])) for row in self.steps if _is_number(row.get(key))]

    def evaluated(self, key: str) -> list[tuple[Row, float]]:
        """As series, of the evaluations."""
        return [(row, float(row[key])) for row in self.evaluations if _is_number(row.get(key))]

    def last(self, key: str) -> float | None:
        """The last number under a key, of steps or evaluations."""
        found = self.series(key) or self.evaluated(key)
        return found[-1][1] if found else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def find_run(model_tag: str) -> tuple[Path, str]:
    """The directory of a run, the newest by default, and its tag. Raises UserError where there is none."""
    runs = base_dir() / "runs"
    if model_tag:
        if not (runs / model_tag).is_dir():
            known = ", ".join(sorted(path.name for path in runs.glob("*") if path.is_dir())) or "none yet"
            raise UserError(f"--model_tag={model_tag}: there is no run {runs / model_tag}; the runs are: {known}")
        return runs / model_tag, model_tag
    found = [(path.stat().st_mtime, path.parents[1]) for path in runs.glob("*/*/metrics.jsonl")]
    found += [(path.stat().st_mtime, path.parents[1]) for path in runs.glob("*/*/config.json")]
    if not found:
        raise UserError(f"there is no run in {runs} to report on; bash run3b.sh --rehearse makes a small one in minutes")
    newest = max(found)[1]
    return newest, newest.name


def read_stage(run: Path, name: str) -> StageFiles:
    """All that is there of a stage."""
    stage = StageFiles(name, run / name)
    config = _object(stage, "config.json")
    stage.settings, stage.identity = _inner(config, "settings"), _inner(config, "identity")
    stage.plan, stage.mixture = _object(stage, "step_plan.json"), _object(stage, "mixture.json")
    stage.core, stage.chat = _object(stage, "core.json"), _object(stage, "chat_eval.json")
    stage.base_loss = _object(stage, "base_loss.json")
    by_step: dict[int, Row] = {}
    for row in _lines(stage, "metrics.jsonl"):
        if not isinstance(row.get("step"), int):
            continue
        if "loss" in row:
            by_step[row["step"]] = row
        else:
            stage.evaluations.append(row)
    stage.steps = [by_step[step] for step in sorted(by_step)]
    samples = [row for row in _lines(stage, "samples.jsonl") if isinstance(row.get("step"), int)]
    last = max((row["step"] for row in samples), default=0)
    stage.samples = list({str(row.get("prompt")): row for row in samples if row["step"] == last}.values())
    transcript = _json(stage, "transcript.json")
    stage.transcript = [one for one in transcript if isinstance(one, dict)] if isinstance(transcript, list) else []
    return stage


def _json(stage: StageFiles, name: str) -> Any:
    path = stage.path / name
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        stage.remarks.append(f"{stage.name}/{name} is damaged ({type(error).__name__})")
        return None


def _object(stage: StageFiles, name: str) -> Row:
    value = _json(stage, name)
    return value if isinstance(value, dict) else {}


def _inner(value: Row, key: str) -> Row:
    inner = value.get(key)
    return inner if isinstance(inner, dict) else {}


def _lines(stage: StageFiles, name: str) -> list[Row]:
    """The rows of a .jsonl; the half line that a killed process leaves is left out."""
    rows: list[Row] = []
    with contextlib.suppress(OSError):
        lines = (stage.path / name).read_text(encoding="utf-8", errors="replace").splitlines()
        broken = 0
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:
                broken += 1
                continue
            if isinstance(row, dict):
                rows.append(row)
        if broken:
            stage.remarks.append(f"{stage.name}/{name}: {broken} of {len(lines)} lines could not be read")
    return rows
