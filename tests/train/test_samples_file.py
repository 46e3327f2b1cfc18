"""What a model said on the way, kept once a step however often the run was killed."""

import json
from pathlib import Path

import pytest

from nanochat.train.run_directory import StageDirectory
from nanochat.train.samples_file import keep_samples


def test_a_step_that_is_done_again_is_kept_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    stage = StageDirectory("d2", "base")
    for step in (10, 20, 30):
        keep_samples(stage, step, ["One", "Two"], [f" was at {step}", " more"])
    path = stage.path / "samples.jsonl"
    path.write_text(path.read_text() + '{"step": 30, "pro')  # killed in the middle of a line
    keep_samples(stage, 20, ["One", "Two"], [" again", " more"])
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["step"], row["text"]) for row in rows] == [(10, " was at 10"), (10, " more"), (20, " again"), (20, " more")]
