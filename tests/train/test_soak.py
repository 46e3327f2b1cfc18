"""Endless use: what a run holds at its end is what it held early on, in its own process and in those beside it."""

import statistics
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT, TINY, World

SOAK = ("--total_batch_size=128", "--eval_every=10", "--eval_tokens=128", "--sample_every=25", "--save_every=20")


@dataclass(frozen=True)
class Held:
    """What the processes of a run hold at one moment."""

    step: int
    rss_mib: float
    descriptors: int
    threads: int
    processes: int


def held_by(process: psutil.Process, step: int) -> Held | None:
    """None where one of them has ended meanwhile."""
    try:
        family = [process, *process.children(recursive=True)]
        return Held(
            step,
            sum(each.memory_info().rss for each in family) / 2**20,
            sum(each.num_fds() for each in family),
            sum(each.num_threads() for each in family),
            len(family),
        )
    except psutil.Error:
        return None


@pytest.mark.parametrize("steps", [600, pytest.param(5000, marks=pytest.mark.slow)])
def test_memory_and_descriptors_stay_flat(world: World, tmp_path: Path, steps: int) -> None:
    tag = f"soak-{steps}"
    command = world.arguments("scripts.base_train", *TINY, *SOAK, f"--num_iterations={steps}", f"--model_tag={tag}", "--run=soak")
    with (tmp_path / "log").open("w") as log:
        run = subprocess.Popen(
            [*command, f"--checkpoint_mirror={tmp_path / 'mirror'}"],
            cwd=ROOT,
            env=world.environment(WANDB_MODE="offline"),
            stdout=log,
            stderr=log,
        )
        process, metrics, seen = psutil.Process(run.pid), world.base / "runs" / tag / "base/metrics.jsonl", list[Held]()
        while run.poll() is None:
            step = metrics.read_bytes().count(b'"loss"') if metrics.exists() else 0
            if step and (held := held_by(process, step)):
                seen.append(held)
            time.sleep(0.1)
    assert run.returncode == 0, (tmp_path / "log").read_text()
    early = [held for held in seen if steps // 4 <= held.step < steps // 2]
    late = [held for held in seen if steps * 3 // 4 <= held.step < steps]
    assert len(early) > 5, len(early)
    assert len(late) > 5, len(late)
    for name, allowed in {"rss_mib": 12.0, "descriptors": 2, "threads": 2, "processes": 0}.items():
        before, after = (statistics.median(getattr(held, name) for held in part) for part in (early, late))
        print(f"{name}: {before:.1f}, later {after:.1f}")
        assert after <= before + allowed, f"{name}: {before} in the second quarter, {after} in the last"
