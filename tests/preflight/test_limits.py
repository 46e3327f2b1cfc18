"""What the system allows: limits that are really lowered, in a process of their own."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from nanochat.preflight import limits
from nanochat.preflight.check import GREEN, RED, YELLOW, Finding
from nanochat.preflight.settings import PreflightSettings
from tests.conftest import ROOT
from tests.preflight.nvidia import Machine

SMALL = PreflightSettings(depth=2, vocab_size=700, max_seq_len=64, num_iterations=10, data="python")


def found(
    settings: PreflightSettings = SMALL, prefix: list[str] | None = None, before: Callable[[], None] | None = None
) -> dict[str, Finding]:
    """What the check finds in a process that is started so."""
    command = [*(prefix or []), sys.executable, "-m", "nanochat.preflight.one", "limits", json.dumps(asdict(settings))]
    finished = subprocess.run(command, cwd=ROOT, preexec_fn=before, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    return {each["name"]: Finding(**each) for each in json.loads(finished.stdout)["findings"]}


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(("files", "status", "advice"), [(4096, GREEN, ""), (512, YELLOW, "ulimit -n 1024"), (128, RED, "ulimit -n 1024")])
def test_open_files(files: int, status: str, advice: str) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    finding = found(before=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard)))["open files"]
    assert (finding.status, finding.value) == (status, f"{files:,} a process")
    assert advice in finding.advice


@pytest.mark.usefixtures("machine")
def test_a_limit_that_this_user_cannot_raise_is_said_to_be_one() -> None:
    finding = found(before=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (512, 512)))["open files"]
    assert "limits.conf" in finding.advice


@pytest.mark.usefixtures("machine")
def test_memory_that_is_there_and_that_is_not() -> None:
    findings = found()
    assert findings["memory"].status == GREEN
    assert "this run needs 0.5" in findings["memory"].value
    assert "overcommit" not in findings
    large = found(PreflightSettings(depth=200))["memory"]
    assert large.status == RED
    assert large.advice


def test_memory_on_a_node_of_gpus_is_for_one_copy(machine: Machine) -> None:
    machine([{}] * 8)
    assert "this run needs 41.0" in found(PreflightSettings(nproc_per_node=8))["memory"].value  # 25.4, each tensor rounded up: 37


@pytest.mark.usefixtures("machine")
def test_a_container_that_may_have_less_than_the_machine() -> None:
    group = Path("/sys/fs/cgroup/memory") / f"nanochat-test-{os.getpid()}"
    if not group.parent.is_dir():
        group = Path("/sys/fs/cgroup") / group.name
    limit = "memory.limit_in_bytes" if group.parent.name == "memory" else "memory.max"
    try:
        group.mkdir()
        (group / limit).write_text(str(400_000_000))
    except OSError:
        pytest.skip("no control group may be made here")
    try:
        finding = found(before=lambda: (group / "cgroup.procs").write_text(str(os.getpid())) and None)["memory"]
        assert finding.status == RED
        assert "that this container may have; this run needs 0.5" in finding.value
    finally:
        group.rmdir()


@pytest.mark.parametrize(("limit", "used", "room"), [("1000", "700", 550.0), ("max", "700", float("inf"))])
def test_control_groups_of_the_second_version(limit: str, used: str, room: float, tmp_path: Path) -> None:
    group = tmp_path / "machine/job"
    group.mkdir(parents=True)
    (tmp_path / "own").write_text("0::/machine/job\n")
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("600\n")
    (group.parent / "memory.max").write_text(f"{limit}\n")
    (group.parent / "memory.current").write_text(f"{used}\n")
    (group.parent / "memory.stat").write_text("anon 1\ninactive_file 250\nactive_file 9\n")
    assert limits.cgroup_room_bytes(tmp_path, tmp_path / "own") == room


def test_shared_memory_of_a_container(machine: Machine) -> None:
    machine([{}] * 8)
    mounted = 'mount -t tmpfs -o size=64m tmpfs /dev/shm && exec "$@"'
    prefix = ["unshare", "--mount", "sh", "-c", mounted, "sh"]
    if subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip("nothing may be mounted here")
    settings = PreflightSettings(nproc_per_node=8)
    finding = found(settings, prefix)["shared memory"]
    assert (finding.status, finding.value) == (YELLOW, "0.1 GB in /dev/shm")
    assert "--ipc=host" in finding.advice
    assert found(SMALL, prefix)["shared memory"].status == YELLOW  # eight GPUs are there, and all of them would be used


@pytest.mark.parametrize(("mode", "names"), [("0", []), ("1", []), ("2", ["overcommit"])])
def test_overcommit(mode: str, names: list[str], tmp_path: Path) -> None:
    (tmp_path / "mode").write_text(f"{mode}\n")
    assert [finding.name for finding in limits.overcommit(tmp_path / "mode")] == names
