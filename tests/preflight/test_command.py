"""`scripts.preflight` from outside: its table, its JSON, its end; checks that hang or break; two nodes."""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from nanochat.preflight import command
from nanochat.preflight.check import GREEN, RED, YELLOW, worst
from nanochat.preflight.command import look_over, preflight
from nanochat.preflight.settings import PreflightSettings
from tests.conftest import ROOT, World, wrong_request
from tests.preflight.nvidia import Machine

SMALL = ("--depth=2", "--vocab_size=700", "--max_seq_len=64", "--num_iterations=10", "--data=python", "--seconds=240")
NAMES = ["GPUs", "disk", "disk speed", "memory", "open files", "shared memory", "hub", "clock", "ports", "versions", "speed", "links"]


@pytest.fixture
def here(machine: Machine, tmp_path: Path) -> World:
    """This machine as if it had no GPU, with a base directory of its own."""
    machine(says="No devices were found", status=6)
    return World(tmp_path / "base")


def test_two_ranks_on_a_cpu_are_looked_over(here: World) -> None:
    finished = here.run("scripts.preflight", *SMALL, "--nproc_per_node=2", "--json")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    told = json.loads(finished.stdout)
    assert [each["name"] for each in told["findings"]] == NAMES
    assert all(set(each) == {"name", "status", "value", "advice", "rank"} for each in told["findings"])
    assert told["verdict"] == worst(each["status"] for each in told["findings"]) != RED


def test_what_is_red_ends_it_with_one_line(here: World) -> None:
    finished = here.run("scripts.preflight", "--depth=400", *SMALL[1:])
    wrong_request(finished, "preflight: disk: ", "GB free, and this run needs", "memory: ")
    lines = finished.stdout.splitlines()
    assert lines[-1].startswith("verdict: red (disk, memory")
    assert sum(line.startswith("red ") for line in lines) == 2
    assert len(lines) == len(NAMES)  # a line each; no links, but the verdict


def test_yellow_warns_and_goes_on(here: World) -> None:
    soft, hard = 512, resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    arguments = here.arguments("scripts.preflight", *SMALL)
    finished = subprocess.run(
        arguments,
        cwd=ROOT,
        env=here.environment(),
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard)),
    )
    assert finished.returncode == 0, finished.stderr
    assert "verdict: yellow (open files" in finished.stdout
    assert finished.stderr == ""


def test_a_wrong_flag_is_told_before_anything_is_looked_at(here: World) -> None:
    wrong_request(here.run("scripts.preflight", "--nodes=0"), "--nodes=0")
    wrong_request(here.run("scripts.preflight", "--depht=3"), "depht")


def test_checks_that_hang_are_ended_and_yellow(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine([{}], hangs=600)
    monkeypatch.setattr(command, "CHECKS", ("GPUs", "disk", "ports"))
    report = look_over(PreflightSettings(depth=2, seconds=5))
    assert [(each["name"], each["status"]) for each in report["findings"]] == [("GPUs", YELLOW), ("disk", YELLOW), ("ports", GREEN)]
    assert report["findings"][0]["value"] == "could not be looked at: not done after 5 s"
    assert not [each for each in psutil.Process().children(recursive=True) if "nanochat.preflight" in " ".join(each.cmdline())]


def test_what_measures_does_not_begin_before_others_on_the_gpus_are_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def noted(arguments: list[str], seconds: float, environment: dict[str, str]) -> dict[str, Any]:
        name = arguments[2]
        if name == "GPUs":
            time.sleep(0.3)
        order.append(name)
        return {}

    monkeypatch.setattr(command, "run", noted)
    monkeypatch.setattr(command, "CHECKS", ("speed", "GPUs"))
    look_over(PreflightSettings())
    assert order == ["GPUs", "speed"]


def test_a_check_that_breaks_is_yellow_with_what_it_said(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine([{"index": "0", "memory.total": "81559", "memory.free": "81000"}])
    monkeypatch.setattr(command, "CHECKS", ("disk", "ports"))
    preflight(PreflightSettings(depth=2, total_batch_size=2049))  # a batch that no plan can have
    said = capsys.readouterr().out
    assert "yellow  disk   could not be looked at: " in said
    assert said.endswith("verdict: yellow (disk)\n")


def start_node(
    here: World, port: int, node: int, nproc: int, files: int = 4096, seconds: str = "240", **environment: str
) -> "subprocess.Popen[str]":
    arguments = [sys.executable, "-m", "scripts.launch", "--nnodes=2", f"--node_rank={node}", f"--nproc_per_node={nproc}"]
    arguments += [
        "--master_addr=127.0.0.1",
        f"--master_port={port}",
        "-m",
        "scripts.preflight",
        "--",
        *SMALL,
        f"--seconds={seconds}",
        "--json",
    ]
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return subprocess.Popen(
        arguments,
        cwd=ROOT,
        env=here.environment(**environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard)),
    )


@pytest.mark.parametrize(("nproc", "files", "verdict"), [(2, 4096, GREEN), (1, 200, RED)])
def test_two_nodes_report_to_the_first_and_end_alike(here: World, nproc: int, files: int, verdict: str) -> None:
    own = {"NANOCHAT_BASE_DIR": str(here.base.with_name("of its own"))} if verdict == RED else {}
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    started = [start_node(here, port, 0, nproc), start_node(here, port, 1, nproc, files, **own)]
    (first, errors), (second, others) = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == ([2, 2] if verdict == RED else [0, 0]), errors + others
    told = json.loads(first)
    findings = {each["name"]: each for each in told["findings"]}
    assert told["verdict"] == verdict, told
    assert second == ""
    assert (others == "error: preflight: something is red; the first node tells what\n") == (verdict == RED), others
    for node in (0, 1):
        assert [f"node {node}: {name}" in findings for name in NAMES[:10]] == [True] * 10
        assert findings[f"node {node}: disk"]["rank"] == nproc * node
    assert findings["node 1: open files"]["status"] == findings["node 1: shared disk"]["status"] == verdict
    assert findings["node 0: shared disk"]["status"] == GREEN
    assert not list(here.base.glob(".preflight*"))
    assert f"of each of {2 * nproc} ranks in an all-reduce over 2 nodes" in findings["links"]["value"]
    assert errors.count("node 1: open files: 200 a process") == (verdict == RED)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 130)])
def test_it_is_ended_with_all_that_it_started(here: World, number: int, status: int) -> None:
    files = here.base.with_name("tmp")
    files.mkdir()
    process = subprocess.Popen(
        here.arguments("scripts.preflight", *SMALL, "--nproc_per_node=2"),
        cwd=ROOT,
        env=here.environment(TMPDIR=str(files)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    while not list(files.rglob("rank*.json")):
        assert process.poll() is None
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    os.kill(process.pid, number)
    assert process.wait(30) == status
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive
    assert list(files.iterdir()) == []


def test_a_node_that_is_silent_is_named(here: World) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    silent = start_node(here, port, 1, 1)
    first = start_node(here, port, 0, 1, seconds="5")
    try:
        asked: list[psutil.Process] = []
        while not asked:
            assert silent.poll() is None
            asked = [each for each in psutil.Process(silent.pid).children() if "scripts.preflight" in each.cmdline()]
        asked[0].suspend()
        told = json.loads(first.communicate(timeout=300)[0])
    finally:
        asked[0].kill()
        silent.communicate(timeout=60)
    assert first.returncode == 2
    findings = {each["name"]: each for each in told["findings"]}
    assert findings["node 1: report"]["status"] == RED
    assert findings["node 1: report"]["value"].startswith("has not reported in ")


def test_a_port_that_is_taken_is_one_line(here: World) -> None:
    with socket.create_server(("", 0)) as taken:
        process = start_node(here, taken.getsockname()[1], node=0, nproc=1)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    lines = [line for line in errors.splitlines() if "[W" not in line]
    assert len(lines) == 1, errors
    assert "the nodes could not meet: their port is taken" in lines[0]
