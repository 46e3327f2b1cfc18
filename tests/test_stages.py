"""How the run scripts run a stage: what is started again, and what a signal to any of the processes does."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT, TINY, World

PRELUDE = 'set -euo pipefail\nTAG=d4 RUN="$1"; shift\nsource ./stages.sh\n'


def shell(program: str, directory: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program after stages.sh, as run3b.sh, with RUN the directory."""
    command = ["bash", "-c", PRELUDE + program, "run3b.sh", str(directory)]
    path = f"{directory}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(command, cwd=ROOT, env={**os.environ, "PATH": path, **environment}, capture_output=True, text=True, timeout=60)


def test_an_evaluation_that_fails_does_not_stop_the_run(tmp_path: Path) -> None:
    finished = shell("evaluation CORE false\necho went on\n", tmp_path)
    assert finished.returncode == 0
    assert finished.stdout.endswith("$ false\nwent on\n")
    assert "warning: the evaluation failed" in finished.stderr


def test_a_password_in_an_address_is_not_shown(tmp_path: Path) -> None:
    finished = shell("stage base sh -c 'echo has $1' - s3://me:pass@bucket/a\n", tmp_path)
    assert finished.stdout.endswith("- s3://***@bucket/a\nhas s3://me:pass@bucket/a\n")


def test_a_stage_that_fails_does_and_gives_a_report(tmp_path: Path) -> None:
    (tmp_path / "python").write_text('#!/bin/sh\necho "asked: $*"\n')
    (tmp_path / "python").chmod(0o755)
    finished = shell("TRAINING=true\nstage tokenizer sh -c 'exit 3'\necho went on\n", tmp_path)
    assert finished.returncode == 3
    assert finished.stdout.endswith("asked: -m scripts.report --model_tag=d4\n")
    assert "went on" not in finished.stdout


@pytest.mark.parametrize(
    ("attempts", "starts", "status"),
    [
        (["exit 0"], 1, 0),
        (["exit 1", "exit 0"], 2, 0),
        (["exit 2"], 1, 2),  # a wrong request stays one
        (["exit 75"], 1, 75),
        (["exit 143"], 1, 75),
        (["exit 1"] * 9, 4, 1),
        (["echo step_5 > latest; exit 1", "exit 1", "exit 1", "echo step_9 > latest; exit 1", "exit 1", "exit 1", "exit 0"], 7, 0),
        (["echo less memory > again; exit 1"] * 5 + ["exit 0"], 6, 0),
        (["echo less memory > again; exit 1"] * 20, 8, 1),
        (["rm -f again; : > again; exit 1"] * 20, 4, 1),  # no message: nothing was changed that could help
    ],
)
def test_training_starts_again_after_a_failure(tmp_path: Path, attempts: list[str], starts: int, status: int) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "again").write_text("old words")
    (base / "checkpoints").symlink_to(base)
    for number, attempt in enumerate(attempts, 1):
        (base / f"attempt{number}").write_text(f"cd {base}; {attempt}\n")
    (tmp_path / "start").write_text(f'echo x >> {base}/starts; sh "{base}/attempt$(($(wc -l < {base}/starts)))"\n')
    finished = shell(f'LAUNCH=(sh {tmp_path}/start)\ntraining base "base training" scripts.base_train --depth=4\n', tmp_path)
    assert finished.returncode == status, finished.stdout + finished.stderr
    assert (base / "starts").read_text().count("x") == starts
    assert finished.stdout.count("starting again") == (starts - 1)
    assert finished.stdout.count("stopped: bash run3b.sh goes on from here") == (status == 75)
    assert ("failed 4 times in a row" in finished.stderr) == (starts == 4)


def lines_until(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout
    for line in process.stdout:
        if line.startswith(word):
            return
    raise AssertionError(f"{word!r} was not said")


WORKER = r"""
import os, signal, sys, time
def heard(number, frame):
    os.write(1, f"heard {signal.Signals(number).name}\n".encode())  # print may be in the middle of a line of its own
    heard.times += 1
    if heard.times == 2:
        os._exit(9)
heard.times = 0
for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
    signal.signal(each, heard)
print("ready", flush=True)
time.sleep(60 if sys.argv[1] == "stays" else 1)
time.sleep(1)
"""


def start_shell(program: str, directory: Path) -> subprocess.Popen[str]:
    command = ["bash", "-c", program, "run3b.sh", str(directory)]
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "WORKER": WORKER}, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1"])
def test_a_signal_to_the_script_is_handed_on_once_and_the_run_ends_with_75(tmp_path: Path, name: str) -> None:
    program = PRELUDE + f'stage training "{sys.executable}" -c "$WORKER" ends\necho went on\n'
    process = start_shell(program, tmp_path)
    lines_until(process, "ready")
    os.kill(process.pid, signal.Signals[name])
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 75
    assert said == f"heard {name}\nstopped: bash run3b.sh goes on from here\n"


def test_a_second_signal_to_the_script_ends_its_command_at_once(tmp_path: Path) -> None:
    process = start_shell(PRELUDE + f'stage training "{sys.executable}" -c "$WORKER" stays\necho went on\n', tmp_path)
    lines_until(process, "ready")
    process.terminate()
    lines_until(process, "heard")
    process.terminate()
    process.communicate(timeout=10)
    assert process.returncode == 75


def test_a_killed_script_takes_its_command_with_it(tmp_path: Path) -> None:
    program = PRELUDE + f'"{sys.executable}" -c "$1" & stage training "{sys.executable}" -c "$1"\n'
    child = (
        "from nanochat.common.processes import die_with_starter; die_with_starter(); import os, time; os.write(1, b'%d\\n' % os.getpid())\n"
    )
    command = ["bash", "-c", program, "run3b.sh", str(tmp_path), child + "time.sleep(60)"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    numbers: list[int] = []
    while len(numbers) < 2 and (line := process.stdout.readline()):
        numbers += [int(line)] if line.strip().isdigit() else []
    assert len(numbers) == 2
    process.kill()
    process.communicate(timeout=10)  # to the end of their output, which they hold open as long as they live


TRAINING = 'LAUNCH=(python -m scripts.launch --standalone --nproc_per_node=2)\ntraining base "base training" scripts.base_train "$@"\n'
FLAGS = (*TINY, "--num_iterations=150", "--save_every=50")


@pytest.fixture(scope="module")
def calm(world: World) -> dict[int, float]:
    """The losses of a run that nothing disturbs."""
    finished = world.run("scripts.base_train", *FLAGS, "--model_tag=undisturbed", nproc=2)
    assert finished.returncode == 0, finished.stderr
    return world.losses("undisturbed")


def processes_of(tag: str) -> list[psutil.Process]:
    """The launcher and the workers that train a run, the oldest first."""
    found = []
    for process in psutil.process_iter(["cmdline", "create_time"]):
        words = process.info["cmdline"] or []
        if f"--model_tag={tag}" in words and "python" in words[0]:
            found.append(process)
    return sorted(found, key=lambda process: process.info["create_time"])


def start(world: World, tag: str) -> Iterator[subprocess.Popen[str]]:
    command = ["bash", "-c", PRELUDE + TRAINING, "run3b.sh", str(world.base / "runs" / tag), *FLAGS, f"--model_tag={tag}"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = world.environment(PATH=path, MAX_RESTARTS="3")
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    yield process
    for left in processes_of(tag):
        left.kill()


def wait_for_step(world: World, tag: str, step: int) -> None:
    path, deadline = world.base / "runs" / tag / "base/metrics.jsonl", time.monotonic() + 60
    while time.monotonic() < deadline:
        if path.exists() and f'"step": {step},' in path.read_text():
            return
        time.sleep(0.02)
    raise AssertionError(f"{tag} did not come to step {step}")


@pytest.mark.parametrize(
    ("whom", "name"),
    [
        ("script", "SIGTERM"),
        ("script", "SIGINT"),
        ("launcher", "SIGUSR1"),
        ("worker", "SIGTERM"),
        ("other worker", "SIGUSR1"),
        ("all", "SIGTERM"),
    ],
)
def test_a_signal_to_any_process_saves_and_ends_with_75(world: World, calm: dict[int, float], whom: str, name: str) -> None:
    tag = f"{whom}-{name}".replace(" ", "-")
    for process in start(world, tag):
        wait_for_step(world, tag, 8)
        launcher, *workers = processes_of(tag)
        assert len(workers) == 2
        script = psutil.Process(process.pid)
        asked = {"script": [script], "launcher": [launcher], "worker": workers[:1], "other worker": workers[1:]}
        for each in asked.get(whom, [script, launcher, *workers]):  # as a cluster does that signals every process
            each.send_signal(signal.Signals[name])
        said, errors = process.communicate(timeout=60)
        assert process.returncode == 75, said + errors
        found = re.search(r"stopped after step (\d+) and saved: the same command goes on from there\n", said)
        assert found, said + errors
        assert said.count("stopped: bash run3b.sh") == 1
        assert "Traceback" not in errors
        assert processes_of(tag) == []
        assert (world.base / f"runs/{tag}/base/checkpoints/latest").read_text() == f"step_{int(found[1]):08d}\n"
        assert not (world.base / f"runs/{tag}/base/model").exists()
    if whom == "all":
        finished = world.run("scripts.base_train", *FLAGS, f"--model_tag={tag}", nproc=2)
        assert finished.returncode == 0, finished.stderr
        assert world.losses(tag) == calm


@pytest.mark.parametrize("whom", [pytest.param("launcher", marks=pytest.mark.slow), "worker"])
def test_a_killed_process_ends_the_job_and_the_script_starts_it_again(world: World, calm: dict[int, float], whom: str) -> None:
    tag = f"{whom}-killed"
    for process in start(world, tag):
        wait_for_step(world, tag, 60)
        launcher, *workers = processes_of(tag)
        (launcher if whom == "launcher" else workers[1]).kill()
        said, errors = process.communicate(timeout=120)
        assert process.returncode == 0, said + errors
        assert said.count("starting again from the last checkpoint (1 of 3") == 1
        assert "going on after step 50" in said
        if whom == "worker":
            assert "error: rank 1 was killed by SIGKILL" in errors, errors
    assert world.losses(tag) == calm


def test_torchruns_own_restarts_do_not_undo_a_stop(world: World) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max_restarts=2"]
    command += ["-m", "scripts.base_train", "--", *FLAGS, "--model_tag=unwilling"]
    process = subprocess.Popen(command, cwd=ROOT, env=world.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for_step(world, "unwilling", 8)
    processes_of("unwilling")[2].terminate()
    said, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert said.count("stopped after step") == 1
    assert processes_of("unwilling") == []
    rows = [json.loads(line) for line in (world.base / "runs/unwilling/base/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] < 150
