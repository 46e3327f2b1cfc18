import json
from dataclasses import asdict
from pathlib import Path

import pytest

from nanochat.ablate import scaling
from nanochat.ablate.results import Result, append_result
from nanochat.ablate.scaling import fit_loss, optimal_ratio, runs_of
from nanochat.common.errors import UserError
from nanochat.plan import loss
from nanochat.plan.loss import LossRun, expected, forecast, loss_at, read_fits, read_runs
from nanochat.plan.sizes import parameters
from tests.conftest import World, wrong_request

TRUE = (0.5, 0.2, 0.4, 0.3, 0.3)


def made_up(depth: int, tokens: int, factor: float = 1.0) -> LossRun:
    return LossRun("made up", 65_536, depth, tokens, factor * loss_at(TRUE, parameters(depth, 65_536), tokens), "a test")


RUNS = [made_up(depth, tokens) for depth in (8, 12, 16, 20) for tokens in (10**8, 10**9, 10**10)]


def test_a_fit_finds_the_law_that_runs_were_made_by() -> None:
    fit = fit_loss(RUNS)
    assert fit.best == pytest.approx(TRUE, rel=1e-3)
    assert fit.spread < 1e-5
    # A depth's best ratio: no other one of the same compute has less loss.
    best = optimal_ratio(fit, 20, 65_536)[0]
    n = parameters(20, 65_536)
    at = {size: loss_at(TRUE, size * n, best * n / size) for size in (0.97, 1.0, 1.03)}
    assert at[1.0] == min(at.values())


def test_uncertainty_grows_with_the_spread_of_runs_and_away_from_them() -> None:
    noisy = fit_loss([made_up(run.depth, run.tokens, 1 + 0.01 * (-1) ** number) for number, run in enumerate(RUNS)])
    assert noisy.spread == pytest.approx(0.01, rel=0.6)

    def width(depth: int, tokens: int) -> float:
        made = forecast(noisy, parameters(depth, 65_536), tokens)
        assert made.low < made.high
        return made.high - made.low

    assert width(52, 10**12) > 2 * width(16, 10**9)
    assert forecast(noisy, parameters(52, 65_536), 10**9).is_extrapolation
    assert forecast(noisy, parameters(16, 65_536), 10**7).is_extrapolation
    assert not forecast(noisy, parameters(16, 65_536), 10**9).is_extrapolation


def test_runs_that_are_too_few_or_too_alike_make_no_fit() -> None:
    for runs in (RUNS[:5], [made_up(8, 10**9)] * 9, [run for run in RUNS if run.depth < 16]):
        with pytest.raises(UserError, match="a fit wants"):
            fit_loss(runs)


def test_the_fits_that_are_kept_are_those_of_the_runs_that_are_kept() -> None:
    runs = read_runs()
    for data, kept in read_fits().items():
        fitted = fit_loss([run for run in runs if run.data == data])
        assert json.loads(json.dumps(asdict(fitted)))["best"] == pytest.approx(kept.best, rel=1e-3), "python -m scripts.scaling --record"
        for ratio in (8, 20):  # single draws may differ from one machine to another
            now, then = (forecast(fit, parameters(38, 65_536), ratio * parameters(38, 65_536)) for fit in (fitted, kept))
            assert (now.low, now.high) == pytest.approx((then.low, then.high), rel=2e-3)


def test_what_a_run_can_expect() -> None:
    n = parameters(20, 65_536)
    measured = expected("fineweb-edu", n, 11_219_763_200)
    assert measured.low < 0.812 < measured.high + 0.001
    assert not measured.is_extrapolation
    assert expected("climbmix", n, 11_219_763_200).data == "fineweb-edu"
    with pytest.raises(ValueError, match="positive"):
        expected("fineweb-edu", 0, 1)


def test_a_results_file_gives_the_runs_of_its_baseline(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    with pytest.raises(UserError, match="no run of a baseline"):
        runs_of(path)
    settings = {"data": "python", "tokenizer": "python-1024"}
    for change in ("baseline", "other"):
        append_result(path, Result(change, 4, 1, "tokens", settings, 10, 40_960, 1.0, 2.5, [], None))
    assert runs_of(path) == [LossRun("python", 1024, 4, 40_960, 2.5, "results.jsonl")]
    append_result(path, Result("baseline", 4, 2, "tokens", {"data": "python"}, 10, 40_960, 1.0, 2.5, [], None))
    with pytest.raises(UserError, match="data and tokenizer"):
        runs_of(path)


def test_what_is_recorded_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.jsonl"
    for depth in (2, 4, 6):
        for tokens in (10**6, 4 * 10**6):
            bpb = loss_at(TRUE, parameters(depth, 1024), tokens)
            settings = {"data": "python", "tokenizer": "python-1024"}
            append_result(path, Result("baseline", depth, 1, "tokens", settings, 10, tokens + depth, 1.0, bpb, [], None))
    runs = read_runs()
    for module in (loss, scaling):
        monkeypatch.setattr(module, "RUNS", tmp_path / "runs.json")
        monkeypatch.setattr(module, "FITS", tmp_path / "fits.json")
    (tmp_path / "runs.json").write_text(json.dumps([asdict(run) for run in runs]))
    for _ in range(2):
        scaling.scaling([str(path)], record=True)
        assert len(read_runs()) == len(runs) + 6
    read_fits.cache_clear()
    assert list(read_fits()) == ["fineweb-edu", "python"]
    read_fits.cache_clear()


def test_the_command(tmp_path: Path) -> None:
    world = World(tmp_path)
    shown = world.run("scripts.scaling")
    assert "fineweb-edu: bits per byte" in shown.stdout, shown.stderr
    assert "extrapolated" in shown.stdout
    wrong_request(world.run("scripts.scaling", "no-such-file.jsonl"), "no-such-file.jsonl holds no run of a baseline")
