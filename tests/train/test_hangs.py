"""A rank that hangs is found, every rank says where it stands, and the run script goes on from the last checkpoint."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, TINY, World

FLAGS = (*TINY, "--num_iterations=12", "--save_every=4", "--hang_timeout=2")


@pytest.fixture(scope="module")
def calm(world: World) -> dict[int, float]:
    """The losses of a run that nothing disturbs."""
    finished = world.run("scripts.base_train", *FLAGS, "--model_tag=never-hung", nproc=2)
    assert finished.returncode == 0, finished.stderr
    assert not list((world.base / "runs/never-hung/base/stacks").glob("*"))
    return world.losses("never-hung")


@pytest.mark.parametrize("how", ["sleeps", pytest.param("holds", marks=pytest.mark.slow), "stopped"])
def test_a_rank_that_hangs_ends_the_job_with_every_ranks_stacks_and_it_goes_on(world: World, calm: dict[int, float], how: str) -> None:
    program = (
        'set -euo pipefail\nTAG=d4 RUN="$1"; shift\nsource ./stages.sh\nLAUNCH=(python -m scripts.launch --standalone --nproc_per_node=2)\n'
    )
    program += 'training base "base training" tests.train.hanging "$@"\n'
    stage = world.base / f"runs/hung-{how}/base"
    command = ["bash", "-c", program, "run3b.sh", str(stage.parent), "1", how, *FLAGS, f"--model_tag=hung-{how}"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = world.environment(PATH=path, TORCH_ELASTIC_SHUTDOWN_TIMEOUT="3")
    finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=150)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "starting again from the last checkpoint (1 of 3" in finished.stdout
    assert "going on after step 4" in finished.stdout
    said = [line for line in finished.stderr.splitlines() if "no progress for 2 s in step 7" in line]
    assert said
    assert all(str(stage / "stacks") in line for line in said)
    assert "in accumulate_gradients" in (stage / "stacks/rank_0.txt").read_text()  # it waits for the other one's weights
    if how != "stopped":  # which cannot say anything
        assert f"in {how}" in (stage / "stacks/rank_1.txt").read_text()
    assert world.losses(f"hung-{how}") == calm
