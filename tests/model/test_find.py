"""Which model is the newest, and which result is of which model, whatever the clock does."""

import os
import re
import subprocess
import time
from pathlib import Path

import pytest

from nanochat.common.files import write_json
from nanochat.model.checksums import digest_of_finished, seal_model, weights_digest
from nanochat.model.find import find_model, make_newest
from tests.conftest import ROOT

STAGES = ("rl", "sft", "mid")


def finish(base: Path, stage: str, weights: bytes) -> Path:
    model = base / "runs/d4" / stage / "model"
    model.mkdir(parents=True, exist_ok=True)
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(weights)
    seal_model(model)
    return model


def test_a_clock_that_is_set_back_does_not_make_a_model_older(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    mid = finish(tmp_path, "mid", b"1")
    make_newest(mid)
    year_ahead = time.time() + 365 * 86400
    os.utime(mid, (year_ahead, year_ahead))  # finished while the clock was a year ahead
    for stage in ("sft", "rl"):
        model = finish(tmp_path, stage, stage.encode())
        assert find_model(STAGES) != model
        make_newest(model)
        assert find_model(STAGES) == model


def is_there(run: Path, result: str) -> bool:
    """What pipeline.sh says."""
    found = re.search(r"^is_there\(\) \{.*?^\}", (ROOT / "pipeline.sh").read_text(), re.DOTALL | re.MULTILINE)
    assert found
    program = f'set -euo pipefail\nRUN=$1\n{found[0]}\nis_there "$2" || exit 7\n'
    finished = subprocess.run(["bash", "-c", program, "run3b.sh", str(run), result], capture_output=True, text=True)
    assert finished.stdout + finished.stderr == ""
    assert finished.returncode in (0, 7)
    return finished.returncode == 0


@pytest.mark.parametrize("years", [-1, 0, 1])
def test_a_result_is_there_when_it_is_of_these_very_weights(tmp_path: Path, years: int) -> None:
    run, result = tmp_path / "runs/d4", tmp_path / "runs/d4/sft/core.json"
    assert not is_there(run, "sft/core.json")
    model = finish(tmp_path, "sft", b"first")
    assert not is_there(run, "sft/core.json")
    write_json(result, {"core": 0.1, "weights": weights_digest(model), "tasks": {}})
    then = time.time() + years * 365 * 86400
    os.utime(result, (then, then))
    assert is_there(run, "sft/core.json")
    finish(tmp_path, "sft", b"second")
    assert not is_there(run, "sft/core.json")
    finish(tmp_path, "sft", b"first")
    assert is_there(run, "sft/core.json")


def test_a_result_of_a_model_that_says_nothing_of_itself_is_made_again(tmp_path: Path) -> None:
    model = finish(tmp_path, "sft", b"first")
    write_json(model.parent / "core.json", {"weights": ""})
    (model / "checksums.json").unlink()
    assert not is_there(tmp_path / "runs/d4", "sft/core.json")


def test_a_model_that_says_nothing_of_itself_is_sealed_by_the_first_evaluation_and_no_newer_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    model, newer = finish(tmp_path, "sft", b"first"), finish(tmp_path, "rl", b"second")
    sealed = weights_digest(model)
    (model / "checksums.json").unlink()
    make_newest(newer)
    assert digest_of_finished(model) == sealed
    assert find_model(STAGES) == newer
    write_json(model.parent / "core.json", {"weights": sealed})
    assert is_there(tmp_path / "runs/d4", "sft/core.json")
