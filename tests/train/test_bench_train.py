"""The benchmark of the training step: one rank of many, alone; and what it refuses."""

import json

import pytest

from tests.conftest import World, wrong_request

SMALL = ("--depth=2", "--max_seq_len=64", "--vocab_size=512", "--device_batch_size=4", "--num_iterations=2", "--no-compile")


def test_one_rank_of_eight_says_what_it_did_and_nothing_else(world: World) -> None:
    finished = world.run("scripts.bench_train", *SMALL, "--world_size=8", "--simulate", "--total_batch_size=4096", "--json")
    assert finished.returncode == 0, finished.stderr
    row = json.loads(finished.stdout)
    assert (row["world_size"], row["micro_batch_size"], row["grad_accum_steps"]) == (8, 4, 2)
    assert row["tok_per_s"] == pytest.approx(4096 / 8 / row["step_s"])
    assert 0 < max(row["forward_s"], row["backward_s"], row["optimizer_s"]) < row["first_step_s"] + row["step_s"]
    assert row["peak_allocated_gib"] > 0.05


def test_beside_the_eager_loop_and_with_a_profile(world: World) -> None:
    finished = world.run("scripts.bench_train", *SMALL, "--baseline", "--profile")
    assert finished.returncode == 0, finished.stderr
    assert "aten::mm" in finished.stdout
    figures = dict(line.split() for line in finished.stdout.splitlines() if line.startswith(" ") and len(line.split()) == 2)
    assert float(figures["ratio"]) > 0


def test_on_ranks_that_torchrun_starts(world: World) -> None:
    finished = world.run("scripts.bench_train", *SMALL, "--json", nproc=2)
    assert finished.returncode == 0, finished.stderr
    row = json.loads(finished.stdout)
    assert (row["world_size"], row["simulated"], row["total_batch_size"]) == (2, False, 4 * 64 * 2)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--world_size=8",), ("--simulate", "torchrun")),
        (("--simulate", "--world_size=3", "--total_batch_size=1024"), ("--total_batch_size=1024", "960 and 1152")),
        (("--simulate", "--record"), ("--record", "compile")),
        (("--simulate", "--record", "--compile"), ("--record", "GPU")),
        (("--simulate", "--baseline"), ("--baseline",)),
        (("--recompute=all",), ("--recompute=all",)),
    ],
)
def test_what_cannot_be_is_refused(world: World, flags: tuple[str, ...], words: tuple[str, ...]) -> None:
    wrong_request(world.run("scripts.bench_train", *SMALL, *flags), *words)
