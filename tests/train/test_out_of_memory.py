"""The allocator fails although the planner thought it would not: a real limit on the address space of a rank."""

import json
import re
import shutil
import sys

import pytest

from tests.conftest import TINY, World

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on address space that the system keeps to")

REPLACED = ("--device", "--total", "--max_seq")
FLAGS = [flag for flag in TINY if not flag.startswith(REPLACED)] + ["--max_seq_len=128", "--total_batch_size=32768", "--num_iterations=2"]
ROOM_MIB = 200  # half of what a step with the large micro-batch needs besides


@pytest.fixture(scope="module")
def small(world: World) -> tuple[int, dict[int, float]]:
    """Most address space of a run with 128 sequences at once, MiB, and its losses."""
    finished = world.run("tests.train.limited", "0", "0", *FLAGS, "--device_batch_size=128", "--model_tag=small")
    assert finished.returncode == 0, finished.stderr
    found = re.search(r"most address space: (\d+) MiB", finished.stdout)
    assert found
    return int(found[1]), world.losses("small")


def test_one_rank_tries_the_step_again_with_half_the_micro_batch(world: World, small: tuple[int, dict[int, float]]) -> None:
    limit, losses = small[0] + ROOM_MIB, small[1]
    finished = world.run("tests.train.limited", "0", str(limit), *FLAGS, "--device_batch_size=256", "--model_tag=again")
    assert finished.returncode == 0, finished.stderr
    assert "step: 1 × 256 sequences" in finished.stdout
    warnings = [line for line in finished.stderr.splitlines() if "ran out of memory" in line]
    assert len(warnings) == 1, finished.stderr
    assert "tried again with 128 sequences at once instead of 256" in warnings[0]
    assert world.losses("again") == pytest.approx(losses, abs=1e-5)
    kept = json.loads((world.base / "runs/again/base/step_plan.json").read_text())
    assert (kept["micro_batch_size"], kept["grad_accum_steps"]) == (128, 2)


def test_several_ranks_stop_together_and_go_on_with_half(world: World, small: tuple[int, dict[int, float]]) -> None:
    run = [*FLAGS[:-2], "--total_batch_size=65536", "--num_iterations=2", "--device_batch_size=256", "--model_tag=together"]
    finished = world.run("tests.train.limited", "1", str(small[0] + ROOM_MIB), *run, nproc=2)
    assert finished.returncode == 1
    errors = [line for line in finished.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, finished.stderr
    assert "rank 1 ran out of memory" in errors[0]
    assert "the last checkpoint with 128 sequences at once instead of 256" in errors[0]
    directory = world.base / "runs/together/base"
    assert (directory / "again").read_text().strip() in errors[0]
    again = world.run("scripts.base_train", *run, nproc=2)
    assert again.returncode == 0, again.stderr
    assert "step: 2 × 128 sequences" in again.stdout
    assert not (directory / "again").exists()


def test_a_wrong_share_of_memory_is_refused_before_training_with_the_nearest_that_fits(world: World) -> None:
    flags = [flag for flag in TINY if not flag.startswith(("--device", "--total", "--max_seq", "--depth"))]
    huge = [*flags, "--depth=32", "--max_seq_len=64", "--total_batch_size=2097152", "--device_batch_size=32768", "--model_tag=huge"]
    finished = world.run("scripts.base_train", *huge, "--micro_batch_size=32768", "--num_iterations=1")
    shutil.rmtree(world.base / "runs/huge", ignore_errors=True)
    assert finished.returncode == 2
    assert "--micro_batch_size=32768" in finished.stderr
    assert "nearest that fits" in finished.stderr
