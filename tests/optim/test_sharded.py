"""The optimizers over shards, in jobs of one to four ranks, against the float64 reference."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
JOBS = ["1", "2", "3", "4", "2x2"]
DEPTHS = [1, 2, 3]
STEPS = 3


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """For each job what its ranks saw."""
    command = [sys.executable, "-m", "tests.optim.rank_worlds", str(tmp_path_factory.mktemp("jobs"))]
    finished = subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240)
    assert finished.returncode == 0, finished.stderr
    found: dict[str, list[dict[str, Any]]] = json.loads(finished.stdout.splitlines()[-1])
    assert list(found) == JOBS
    assert all(None not in ranks for ranks in found.values()), finished.stderr
    return found


@pytest.mark.parametrize("job", JOBS)
def test_updates_are_those_of_the_formulas(jobs: dict[str, list[dict[str, Any]]], job: str) -> None:
    for saw in jobs[job]:
        for what in (*(f"depth {depth}" for depth in DEPTHS), "state made first", "norms held", "awkward"):
            assert saw[what]["error"] < (5e-5 if what == "norms held" else 1e-5), what


@pytest.mark.parametrize("job", JOBS)
def test_every_rank_ends_with_the_same_weights(jobs: dict[str, list[dict[str, Any]]], job: str) -> None:
    for depth in DEPTHS:
        assert len({tuple(saw[f"depth {depth}"]["weights_sum"]) for saw in jobs[job]}) == 1


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("depth", DEPTHS)
def test_no_matrix_is_orthogonalized_twice_and_the_work_is_even(jobs: dict[str, list[dict[str, Any]]], job: str, depth: int) -> None:
    d = 64 * depth
    square, wide, tall = (d, d), (d, 4 * d), (4 * d, d)
    totals: Counter[tuple[int, int]] = Counter()
    mlp_matrices, costs = [], []
    for saw in jobs[job]:
        done: Counter[tuple[int, int]] = Counter()
        for matrices, rows, cols in saw[f"depth {depth}"]["orthogonalized"]:
            done[rows, cols] += matrices
        totals += done
        mlp_matrices.append((done[wide] + done[tall]) / STEPS)
        costs.append((done[square] + 3 * (done[wide] + done[tall])) / STEPS)  # 30·d³ and 90·d³ FLOPs
    assert totals == {square: 4 * depth * STEPS, wide: depth * STEPS, tall: depth * STEPS}
    assert max(mlp_matrices) - min(mlp_matrices) <= 1
    assert max(costs) <= sum(costs) / len(costs) + 1


@pytest.mark.parametrize("job", JOBS)
def test_awkward_shapes_take_several_rounds_and_leave_shards_empty(jobs: dict[str, list[dict[str, Any]]], job: str) -> None:
    batches = [batch for saw in jobs[job] for batch in saw["awkward"]["orthogonalized"]]
    assert all(matrices == 1 or matrices * rows * cols <= 64 for matrices, rows, cols in batches)
    assert sum(matrices for matrices, _, _ in batches) == (3 + 7 + 5 + 2 + 3) * STEPS
    assert len(jobs[job][0]["awkward"]["orthogonalized"]) > 4 * STEPS
    if job != "1":
        assert jobs[job][-1]["awkward"]["empty_shards"] > 0


@pytest.mark.parametrize("job", JOBS)
def test_state_is_spread_like_its_parameters(jobs: dict[str, list[dict[str, Any]]], job: str) -> None:
    for saw in jobs[job]:
        for what in ("depth 1", "state made first"):
            assert saw[what]["state"] == ["exp_avg", "exp_avg_sq", "mean_square", "momentum_buffer", "step", "steps"]
            assert saw[what]["state_unlike_its_parameter"] == []
        assert "norm" in saw["norms held"]["state"]
        assert saw["norms held"]["state_unlike_its_parameter"] == []
        assert saw["state made first"]["weights_sum"] == saw["depth 1"]["weights_sum"]
