"""Tuning from end to end on a CPU, and what then goes by it."""

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from nanochat.parallel.proofs import Proof
from nanochat.plan.choose import ways
from nanochat.plan.hardware import cpu
from nanochat.plan.recipe import Recipe
from nanochat.plan.sizes import Shape
from nanochat.plan.step import Job
from nanochat.tune import children, prove
from nanochat.tune.search import Search
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
    report = world.run("scripts.report", "--model_tag=tuned", cwd=world.base)
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
    time.sleep(1)
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


def test_a_quick_tuning_proves_only_what_the_likeliest_way_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")  # no compiler
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.chdir(ROOT)
    _, found = children.proofs(2, 64, 300, ["fp32"], quick=True)
    assert {proof["name"] for proof in found} == {"attention=fused", "muon=plain", "muon=gram", "head=plain", "compile=off"}


@pytest.mark.parametrize("right", [True, False])
def test_a_quick_tuning_proves_other_kernels_where_the_likely_one_is_wrong(
    right: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(prove, "names", lambda *_, **__: ["fp8_sums=long", "fp8_sums=short", "fp8_weights=kept"])
    monkeypatch.setattr(prove, "prove", lambda name, precision, size: Proof(name, precision, 0.01, 0.03, right))
    prove.main({"depth": 2, "seq_len": 64, "vocab_size": 300, "precisions": ["fp8"], "skip": [], "quick": True})
    lines = map(json.loads, capsys.readouterr().out.splitlines())
    proven = [line["proof"]["name"] for line in lines if "proof" in line]
    assert proven == ["fp8_sums=long", *([] if right else ["fp8_sums=short"])]


def job(**sizes: int) -> Job:
    return Job(Shape(2, 300, 64), cpu(8.0), 1, 1, 256, 4, compute_bytes=4, on_gpu=False, **sizes)  # type: ignore[arg-type]


PROVEN = [
    {"name": name, "precision": "fp32", "error": 1e-6, "tolerance": 1e-4, "passed": True, "milliseconds": ms}
    for name, ms in (("attention=products", 1.0), ("attention=fused", 2.0), ("muon=plain", 1.0))
]


def test_where_a_proven_kernel_fails_in_the_step_the_next_one_is_taken(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "BENCH", "tests.tune.failing_bench")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(world.base / "nothing tuned"))
    monkeypatch.chdir(ROOT)
    said: list[str] = []
    search = Search(job(), PROVEN, time.monotonic() + 1, said.append, compiles=False)
    search.run()
    assert search.best
    assert search.best[1] == Recipe(compile="off")
    assert "illegal memory access" in said[0]
    assert search.struck
    assert search.final()["step_s"] == search.best_s
    assert search.tuned().recipe == search.best[1]


def test_without_what_every_step_needs_nothing_is_measured() -> None:
    struck = [{**proof, "passed": proof["name"] != "muon=plain"} for proof in PROVEN]
    search = Search(job(), struck, time.monotonic() + 60, print, compiles=False)
    search.run()
    assert search.best is None
    assert "not right here" in search.struck[0]


def test_figures_that_are_kept_are_all_of_a_hot_machine() -> None:
    search = Search(job(), PROVEN, time.monotonic(), print)
    short = {"recipe": Recipe().text, "recompute": "none", "reshard": False, "mfu": 0.5, "first_step_after_start_s": 9.0}
    plans = ways(search.job)
    search.figures = [
        {**short, "micro_batch_size": plans[0].micro_batch_size, "step_s": 1.0, "tok_per_s": 100.0},
        {**short, "micro_batch_size": 77, "step_s": 1.1, "tok_per_s": 90.0},
        {**short, "micro_batch_size": plans[0].micro_batch_size, "step_s": 1.2, "tok_per_s": 83.0},  # the first in full
    ]
    search.best, search.best_s = (plans[0], Recipe()), 1.0
    kept = {each["micro_batch_size"]: each for each in search.kept_figures()}
    assert kept[plans[0].micro_batch_size]["step_s"] == 1.2
    assert kept[77]["step_s"] == pytest.approx(1.32)
    assert kept[77]["tok_per_s"] == pytest.approx(75)


def test_an_older_profile_does_not_leak_into_what_is_measured(world: World, tuned: dict[str, Any]) -> None:
    path = next((world.base / "profiles").glob("*.json"))
    text = path.read_text()
    old = json.loads(text)
    for each in old["tuned"]:
        each["recipe"] |= {"threads": 1, "muon": "gram"}
    path.write_text(json.dumps(old))
    try:
        finished = world.run("scripts.tune", *SIZE, "--precision=fp32", "--minutes=0.2", "--json")
        assert finished.returncode == 0, finished.stderr
        again = json.loads(finished.stdout)
        assert next(each for each in again["tuned"] if each["precision"] == "fp32")["recipe"]["threads"] == 0
        assert again["precision"] == tuned["precision"]  # one precision alone does not say which is the faster
        assert {each["precision"] for each in again["tuned"]} == {each["precision"] for each in tuned["tuned"]}
        unfinished = {**again, "driver": "unfinished"}
        path.write_text(json.dumps(unfinished))
        stopped = subprocess.Popen(
            world.arguments("scripts.tune", *SIZE, "--once"), cwd=ROOT, env=world.environment(), stdout=-1, text=True
        )
        assert stopped.stdout
        assert stopped.stdout.readline().startswith("proving")  # what was cut off is not taken for done
        stopped.terminate()
        stopped.wait(timeout=20)
    finally:
        path.write_text(text)


def test_wrong_requests_are_a_line(world: World) -> None:
    wrong_request(world.run("scripts.tune", "--minutes=0"), "--minutes=0")
    wrong_request(world.run("scripts.tune", *SIZE, "--record"), "--record", "CPU")
    wrong_request(world.run("scripts.tune", "--depth=2", "--total_batch_size=1000", "--world_size=1"), "1000")
    wrong_request(world.run("scripts.base_train", *TINY, "--recipe=attention=flash", "--num_iterations=1"), "attention=flash")
    wrong_request(world.run("scripts.base_train", *TINY, "--recipe=attention=magic"), "attention=magic", "products")


def test_two_ranks_links_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("NNODES", "3")  # the run's; a node is tuned alone
    monkeypatch.chdir(ROOT)
    found = children.links(2)
    assert found["ranks"] == 2
    assert found["bytes_per_s"] > 1e6
