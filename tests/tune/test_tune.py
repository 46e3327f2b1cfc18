"""Tuning from end to end on a CPU, and what then goes by it."""

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from nanochat.tune import children
from tests.conftest import ROOT, TINY, VOCAB_SIZE, World, wrong_request

SIZE = ("--depth=2", f"--vocab_size={VOCAB_SIZE}", "--max_seq_len=64", "--device_batch_size=4", "--total_batch_size=1024")
TRAINED = [flag for flag in TINY if not flag.startswith(("--precision", "--no-compile"))]


@pytest.fixture(scope="module")
def tuned(world: World) -> dict[str, Any]:
    finished = world.run("scripts.tune", *SIZE, "--json", "--minutes=1.5")
    assert finished.returncode == 0, finished.stderr
    return dict(json.loads(finished.stdout)) | {"said": finished.stderr}


def test_everything_is_proven_and_measured(tuned: dict[str, Any]) -> None:
    assert all(proof["passed"] for proof in tuned["proofs"])
    assert {"attention=fused", "attention=products", "muon=gram", "compile=layers"} <= {proof["name"] for proof in tuned["proofs"]}
    assert tuned["struck"] == []
    assert tuned["precision"] in [each["precision"] for each in tuned["tuned"]]
    for each in tuned["tuned"]:
        assert each["tok_per_s"] == pytest.approx(
            1024 / min(row["step_s"] for row in tuned["rows"] if row["precision"] == each["precision"])
        )
    assert tuned["said"].count("tok/s") > len(tuned["tuned"])


def test_training_takes_what_was_found_and_says_so(world: World, tuned: dict[str, Any]) -> None:
    run = [*TRAINED, "--num_iterations=2", "--model_tag=tuned"]
    finished = world.run("scripts.base_train", *run)
    assert finished.returncode == 0, finished.stderr
    line = next(line for line in finished.stdout.splitlines() if line.startswith("kernels: "))
    assert line.startswith(f"kernels: {tuned['precision']}, ")
    assert "that scripts.tune measured here" in line
    kept = json.loads((world.base / "runs/tuned/base/step_plan.json").read_text())
    mine = next(each for each in tuned["tuned"] if each["precision"] == tuned["precision"])
    assert kept["kernels"] == mine["recipe"]
    assert kept["computes_in"] == tuned["precision"]
    report = world.run("scripts.report", "--model_tag=tuned")
    assert report.returncode == 0, report.stderr
    text = (world.base / "runs/tuned/report.md").read_text()
    assert "How the machine was tuned" in text
    assert f"{tuned['precision']}, attention=" in text


def test_once_is_enough(world: World, tuned: dict[str, Any]) -> None:
    began = time.monotonic()
    finished = world.run("scripts.tune", *SIZE, "--once")
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.startswith("tuned already")
    assert time.monotonic() - began < 5


def test_a_stop_ends_what_measures(world: World) -> None:
    command = world.arguments("scripts.tune", *SIZE)
    process = subprocess.Popen(command, cwd=ROOT, env=world.environment(), stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline().startswith("proving")
    started = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    until = time.monotonic() + 20
    while not (proving := started.read_text().split()) and time.monotonic() < until:
        time.sleep(0.05)
    assert proving
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 143
    assert not any(Path(f"/proc/{child}").exists() for child in proving)


def test_kernels_that_kill_or_hang_their_process_are_struck_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "PROVE", "tests.tune.dying_proofs")
    monkeypatch.setattr(children, "PROOF_S", 10.0)  # without a compiler nothing takes a second
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(ROOT)
    facts, found = children.proofs(2, 64, 300, ["fp32"])
    assert facts["gpus"] == 0
    notes = {proof["name"]: proof["note"] for proof in found if not proof["passed"]}
    assert notes.keys() == {"muon=halves", "muon=gram"}
    assert "killed by signal 9" in notes["muon=halves"]
    assert "hung for 10 s" in notes["muon=gram"]
    assert len({proof["name"] for proof in found}) == len(found) == 6


def test_wrong_requests_are_a_line(world: World) -> None:
    wrong_request(world.run("scripts.tune", "--minutes=0"), "--minutes=0")
    wrong_request(world.run("scripts.tune", *SIZE, "--record"), "--record", "CPU")
    wrong_request(world.run("scripts.tune", "--depth=2", "--total_batch_size=1000", "--world_size=1"), "1000")
    wrong_request(world.run("scripts.base_train", *TINY, "--recipe=attention=flash", "--num_iterations=1"), "attention=flash")
    wrong_request(world.run("scripts.base_train", *TINY, "--recipe=attention=magic"), "attention=magic", "products")


def test_two_ranks_links_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(ROOT)
    found = children.links(2)
    assert found["ranks"] == 2
    assert found["bytes_per_s"] > 1e6
