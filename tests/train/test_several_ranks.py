"""Base training on several ranks as a person runs it: resumed on fewer, on two nodes, the guide's flags, what cannot be."""

import json
import os
import shutil
import signal
import socket
import subprocess
import time

import pytest

from tests.conftest import ROOT, TINY, World, wrong_request

FLAGS = [flag for flag in TINY if not flag.startswith("--total")] + ["--total_batch_size=1024", "--num_iterations=24", "--save_every=6"]


@pytest.fixture(scope="module")
def whole(world: World) -> dict[int, float]:
    """The losses of one process that nothing disturbs."""
    finished = world.run("scripts.base_train", *FLAGS, "--model_tag=whole")
    assert finished.returncode == 0, finished.stderr
    return world.losses("whole")


def test_killed_at_four_ranks_it_goes_on_at_two_and_at_one(world: World, whole: dict[int, float]) -> None:
    metrics = world.base / "runs/mixed/base/metrics.jsonl"
    for ranks, steps in ((4, 8), (2, 15)):
        command = world.arguments("scripts.base_train", *FLAGS, "--model_tag=mixed", nproc=ranks)
        process = subprocess.Popen(command, cwd=ROOT, env=world.environment(), start_new_session=True, stdout=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 90
        while not (metrics.exists() and metrics.read_text().count("\n") >= steps) and time.monotonic() < deadline:
            time.sleep(0.01)
        workers = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
        for pid in (*map(int, workers), process.pid):
            os.kill(pid, signal.SIGKILL)
        process.communicate(timeout=60)
    finished = world.run("scripts.base_train", *FLAGS, "--model_tag=mixed")
    assert finished.returncode == 0, finished.stderr
    assert "going on after step" in finished.stdout
    assert world.losses("mixed") == pytest.approx(whole, abs=1e-4)


def test_in_eight_bits_two_ranks_with_scales_of_their_own_follow_float32(world: World, whole: dict[int, float]) -> None:
    run = [*(flag for flag in FLAGS if not flag.startswith("--precision")), "--precision=fp8", "--micro_batch_size=1"]
    run += ["--recipe=fp8_scales=kept,fp8_weights=kept", "--model_tag=eight-bits"]
    finished = world.run("scripts.base_train", *run, nproc=2, NANOCHAT_FP8_ON_CPU="1")
    assert finished.returncode == 0, finished.stderr
    assert "fp8_scales=kept" in finished.stdout
    eight = world.losses("eight-bits")
    assert eight == pytest.approx(whole, rel=0.02)
    assert eight != pytest.approx(whole, abs=1e-4)  # they are in eight bits


def test_two_nodes_replicate_and_give_the_losses_of_one_process(world: World, whole: dict[int, float]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    nodes = []
    for node in (0, 1):
        flags = ["--nnodes=2", f"--node_rank={node}", "--nproc_per_node=2", "--master_addr=127.0.0.1", f"--master_port={port}"]
        # Evaluations and samples bring whole weights together between steps, and must leave no trace of it.
        between = ["--eval_every=5", "--eval_tokens=512", "--sample_every=7", "--reshard_after_forward=never"]
        command = world.arguments("scripts.base_train", *FLAGS, *between, "--model_tag=nodes", nproc=2)
        at = command.index("--standalone")
        command[at : at + 2] = flags
        environment = world.environment(NNODES="2")
        nodes.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    outputs = [node.communicate(timeout=200)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], outputs
    assert world.losses("nodes") == pytest.approx(whole, abs=1e-4)


@pytest.mark.parametrize(("device_batch_size", "total"), [(48, 786_432), (20, 327_680)])
def test_the_guides_lines_on_eight_processes(world: World, device_batch_size: int, total: int) -> None:
    # Sequences of 16 tokens instead of 2,048, and a model of one layer: the same sequences on the same number of ranks.
    flags = ["--depth=1", "--max_seq_len=16", f"--device_batch_size={device_batch_size}", f"--total_batch_size={total * 16 // 2048}"]
    finished = world.run(
        "scripts.base_train", *flags, "--num_iterations=2", "--no-compile", "--save_every=-1", "--model_tag=eight", nproc=8
    )
    assert finished.returncode == 0, finished.stderr
    assert f"1 × {device_batch_size} sequences at once on each rank" in finished.stdout
    rows = [json.loads(line) for line in (world.base / "runs/eight/base/metrics.jsonl").read_text().splitlines()]
    assert [row["tokens"] for row in rows if "tokens" in row] == [total * 16 // 2048, 2 * total * 16 // 2048]
    shutil.rmtree(world.base / "runs/eight")


def test_nnodes_that_does_not_match_is_refused(world: World) -> None:
    finished = world.run("scripts.base_train", *FLAGS, "--model_tag=mesh", NNODES="2")
    wrong_request(finished, "NNODES=2", "1 ranks on 1 node")


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--micro_batch_size=3", ("--micro_batch_size=3", "2 and 4")),
        ("--recompute=some", ("--recompute=some", "mlp")),
        ("--recompute=mlp:9", ("--recompute=mlp:9", "1 to 2 layers")),
        ("--target_hours=1", ("hours", "--num_iterations")),
    ],
)
def test_requests_that_cannot_be(world: World, flag: str, words: tuple[str, ...]) -> None:
    flags = [each for each in FLAGS if not (flag.startswith("--target") and each.startswith("--num_iterations"))]
    wrong_request(world.run("scripts.base_train", *flags, "--model_tag=wrong", flag), *words)


def test_what_was_asked_for_is_done_and_kept_and_gives_the_same_losses(world: World, whole: dict[int, float]) -> None:
    flags = ["--device_batch_size=8", "--micro_batch_size=4", "--recompute=mlp:1", "--reshard_after_forward=always", "--model_tag=asked"]
    finished = world.run("scripts.base_train", *FLAGS, *flags)
    assert finished.returncode == 0, finished.stderr
    assert "step: 4 × 4 sequences, of the 8 a pass that were asked for, at once on each rank, recompute mlp:1" in finished.stdout
    assert world.losses("asked") == pytest.approx(whole, abs=1e-4)
    kept = json.loads((world.base / "runs/asked/base/step_plan.json").read_text())
    assert (kept["micro_batch_size"], kept["recompute"], kept["reshard"]) == (4, "mlp:1", True)


@pytest.mark.parametrize(
    ("rank", "where", "words"),
    [(1, "tokens", "error: rank 1 alone: these token shards are not here"), (1, "step", "a loader's fault"), (0, "save", "no memory")],
)
def test_a_rank_that_fails_alone_says_why_and_leaves_nobody_waiting(world: World, rank: int, where: str, words: str) -> None:
    began = time.monotonic()
    finished = world.run("tests.train.failing", str(rank), where, *FLAGS, f"--model_tag=alone-{where}", nproc=2)
    assert finished.returncode == 1
    assert words in finished.stderr
    assert time.monotonic() - began < 60
    again = world.run("scripts.base_train", *FLAGS, "--num_iterations=8", f"--model_tag=alone-{where}")
    assert again.returncode == 0, again.stderr
