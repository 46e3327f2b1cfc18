"""`scripts.plan`, as people and scripts use it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nanochat.common.cli import parse
from nanochat.common.errors import UserError
from nanochat.plan.command import plan
from nanochat.plan.hardware import GPUS
from nanochat.plan.settings import PlanSettings

ROOT = Path(__file__).parents[2]
KEYS = (
    "parameters flops_per_token fits peak_gib micro_batch_size grad_accum_steps recompute tok_per_s mfu tokens steps hours usd "
    "text_shards data_gb checkpoint_gb estimated"
)


@pytest.fixture(autouse=True)
def _no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))


def run(*args: str) -> None:
    plan(parse(PlanSettings, list(args)))


@pytest.fixture
def answer(capsys: pytest.CaptureFixture[str]) -> Any:
    def of(*args: str) -> Any:
        run(*args, "--json")
        return json.loads(capsys.readouterr().out)

    return of


@pytest.mark.parametrize(
    ("depth", "parameters"), [(12, 185_597_952), (20, 560_988_160), (32, 1_879_048_192), (38, 3_015_835_648), (52, 7_347_372_032)]
)
def test_machines_read_one_consistent_answer(depth: int, parameters: int, answer: Any) -> None:
    p = answer("--depth", str(depth), "--gpus", "8xH100-80GB")
    assert set(KEYS.split()) <= set(p)
    assert p["parameters"] == parameters
    assert p["fits"] is True
    assert p["peak_gib"] < 78
    assert p["peak_gib"] == pytest.approx(sum(p["memory_gib"].values()), abs=0.01)
    assert p["step_s"] == pytest.approx(sum(p["time_s"].values()))
    assert p["tokens"] == p["steps"] * p["total_batch_size"]
    assert p["tokens"] == pytest.approx(8 * parameters, rel=1e-3)
    evaluations = 20 * 524_288 / 3 / (250 * p["total_batch_size"])
    assert p["hours"] == pytest.approx(p["tokens"] / p["tok_per_s"] / 3600 * (1 + evaluations))
    assert p["usd"] == pytest.approx(p["hours"] * 24)
    assert p["mfu"] == pytest.approx(p["tok_per_s"] * p["flops_per_token"] / (8 * 989.4e12))
    assert p["micro_batch_size"] * p["grad_accum_steps"] * 8 * 2048 == p["total_batch_size"]
    assert p["estimated"] is False


def test_the_guides_batches_are_the_defaults(answer: Any) -> None:
    sizes = [
        (p["device_batch_size"], p["total_batch_size"]) for p in (answer("--depth", d, "--gpus", "8xH100") for d in ("38", "52", "20"))
    ]
    assert sizes == [(48, 786_432), (24, 393_216), (32, 524_288)]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 6, 7, 8, 16])
def test_any_number_of_gpus_has_a_batch_that_divides(count: int, answer: Any) -> None:
    p = answer("--depth", "12", "--gpus", f"{count}xH100")
    assert p["total_batch_size"] % (2048 * count) == 0
    assert p["total_batch_size"] == pytest.approx(524_288, rel=0.15)
    assert p["fits"]


def test_a_budget_of_hours_or_dollars_is_kept(answer: Any) -> None:
    hours = answer("--depth", "38", "--gpus", "8xH100-80GB", "--hours", "20")
    assert 19.9 < hours["hours"] <= 20
    dollars = answer("--gpus", "8xH100-80GB", "--usd", "500")
    assert 495 < dollars["usd"] <= 500
    assert dollars["tokens_per_parameter"] >= 8
    deeper = answer("--gpus", "8xH100-80GB", "--usd", "500", "--depth", str(dollars["depth"] + 2))
    assert deeper["tokens_per_parameter"] < 8
    cheaper = answer("--gpus", "8xH100-80GB", "--usd", "500", "--usd_per_gpu_hour", "1.5")
    assert cheaper["depth"] > dollars["depth"]


def test_overrides_are_kept(answer: Any) -> None:
    p = answer(
        *("--depth", "38", "--gpus", "8xH100", "--micro_batch_size", "4", "--recompute", "mlp:7", "--reshard_after_forward", "always"),
        *("--num_iterations", "100", "--data", "fineweb-edu", "--precision", "fp32", "--nodes", "2"),
    )
    assert (p["micro_batch_size"], p["recompute"], p["reshard"], p["steps"], p["data"]) == (4, "mlp:7", True, 100, "fineweb-edu")
    assert (p["precision"], p["world_size"], p["estimated"], p["grad_accum_steps"]) == ("fp32", 16, True, 6)


def test_kinds_side_by_side(answer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    plans = answer("--compare", "--depth", "52", "--gpus", "8xH100", "--usd_per_gpu_hour", "2")
    assert [p["gpu"] for p in plans] == [gpu.name for gpu in GPUS]
    prices = {p["gpu"]: p["usd_per_gpu_hour"] for p in plans}
    assert prices["H100-80GB"] == 2
    assert prices["H200"] == 3.5
    assert {p["gpu"] for p in plans if not p["estimated"]} == {"H100-80GB"}
    run("--compare", "--depth", "52")
    text = capsys.readouterr().out
    assert all(text.count(gpu.name) >= 2 for gpu in GPUS)
    assert text.count("estimated") >= len(GPUS) - 1


def test_a_person_reads_memory_by_kind_speed_money_and_disk(capsys: pytest.CaptureFixture[str]) -> None:
    run("--depth", "38", "--gpus", "8xB200")
    text = capsys.readouterr().out
    for words in (
        "3,015,835,648",
        "gradients",
        "optimizer",
        "activations",
        "communication",
        "reserve",
        "peak",
        "tok/s",
        "hours",
        "dollars",
        "validation bits per byte",
        "an extrapolation from",
    ):
        assert words in text
    assert text.count("(estimated)") >= 3
    run("--depth", "38")
    assert "planned for 8xH100-80GB" in capsys.readouterr().out
    run("--usd", "500")
    assert "what the budget buys" in capsys.readouterr().out


def test_a_plan_that_fits_nowhere_says_so(answer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert answer("--depth", "52", "--gpus", "RTX4090")["fits"] is False
    run("--depth", "52", "--gpus", "RTX4090")
    assert "it does not fit: depth 52 on 1 × RTX-4090 needs at least" in capsys.readouterr().out
    with pytest.raises(UserError, match="nearest that fits: --depth="):
        run("--depth", "52", "--gpus", "RTX4090", "--check")
    with pytest.raises(UserError, match=r"--micro_batch_size=48 --recompute=none needs .* nearest that fits: --micro_batch_size=16"):
        run("--depth", "38", "--gpus", "8xH100", "--micro_batch_size", "48", "--recompute", "none", "--check")


def test_a_text_that_is_here_already_takes_no_room(answer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    own, hub = answer("--data", "path:/my text"), answer()
    assert (own["text_shards"], own["data_gb"], own["epochs"]) == (0, 0, None)
    assert own["checkpoint_gb"] == hub["checkpoint_gb"]
    run("--data", "path:/my text")
    assert "path:/my text, which is not on the hub: nothing to fetch" in capsys.readouterr().out
    with pytest.raises(UserError, match="--data=climbmx: no such text"):
        run("--data", "climbmx")


def test_scripts_read_one_value(capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in (("text_shards", "478"), ("recompute", "none"), ("fits", "true"), ("parameters", "3015835648")):
        run("--depth", "38", "--gpus", "8xH100", "--field", name)
        assert capsys.readouterr().out == f"{value}\n"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--gpus", "8xV100"], "H100-80GB"),
        (["--depth", "13"], "12 and 14"),
        (["--field", "colour"], "there are depth, parameters"),
        (["--total_batch_size", "1000"], "nearest that do are"),
        (["--micro_batch_size", "7", "--gpus", "8xH100"], "6 and 8"),
        (["--recompute", "some"], "mlp"),
        (["--recompute", "mlp:99"], "1 to 38 layers"),
        (["--nodes", "0"], "--nodes=0"),
        (["--vocab_size", "100000"], "65536"),
        (["--hours", "-3"], "--hours=-3"),
        (["--usd", "nan"], "--usd=nan"),
        (["--hours", "5", "--num_iterations", "10"], "one or the other"),
        (["--usd", "0.0001"], "too little"),
        (["--usd", "0.0001", "--depth", "52"], "less than one step"),
        (["--compare", "--field", "usd"], "--compare"),
        (["--nproc_per_node", "16", "--gpus", "8xH100"], "the node has 8"),
        (["--precision", "int4"], "int4"),
        (["--precision", "fp8", "--gpus", "8xA100"], "A100-80GB has no fp8"),
    ],
)
def test_a_wrong_request_is_one_sentence(flags: list[str], words: str) -> None:
    with pytest.raises(UserError) as refused:
        run(*flags)
    assert words in str(refused.value)


def test_the_answer_needs_neither_torch_nor_numpy() -> None:
    program = """
import runpy, sys
sys.argv = ["plan", "--depth", "38", "--gpus", "8xH100-80GB", "--json"]
try:
    runpy.run_module("scripts.plan", run_name="__main__")
except SystemExit as leaving:
    assert not leaving.code, leaving.code
loaded = [name for name in ("torch", "numpy") if name in sys.modules]
sys.exit(bool(loaded))
"""
    finished = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert json.loads(finished.stdout)["fits"]
