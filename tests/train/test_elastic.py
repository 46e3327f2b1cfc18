"""A run that goes on with another number of ranks after every stop: the same data, the same losses."""

import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT, TINY, World

FLAGS = (*TINY, "--total_batch_size=768", "--device_batch_size=1", "--num_iterations=500", "--save_every=-1")
STEPS = 6  # on each number of ranks, at least


def train_until(world: World, tag: str, nproc: int, step: int) -> int:
    """Train on so many ranks until that step is done, then ask to stop; the steps done."""
    command = [sys.executable, "-m", "scripts.launch", "--standalone", f"--nproc_per_node={nproc}", "-m", "scripts.base_train", "--"]
    process = subprocess.Popen(
        [*command, *FLAGS, f"--model_tag={tag}"],
        cwd=ROOT,
        env=world.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics, deadline = world.base / "runs" / tag / "base/metrics.jsonl", time.monotonic() + 90
    while not (metrics.exists() and f'"step": {step},' in metrics.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.terminate()
    _, errors = process.communicate(timeout=90)
    assert process.returncode == 75, errors
    return len(world.losses(tag))


def test_four_ranks_then_two_then_three(world: World) -> None:
    done = 0
    for nproc in (4, 2, 3):
        before, done = done, train_until(world, "elastic", nproc, done + STEPS)
        assert done >= before + STEPS
    assert train_until(world, "alone", 1, done) >= done
    losses, expected = world.losses("elastic"), world.losses("alone")
    assert [losses[step] for step in range(1, done + 1)] == pytest.approx([expected[step] for step in range(1, done + 1)], rel=2e-4)
