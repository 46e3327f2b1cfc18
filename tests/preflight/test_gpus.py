"""What the driver says of the GPUs, and what becomes of it."""

import re
from pathlib import Path

import pytest

from nanochat.preflight import gpus
from nanochat.preflight.check import GREEN, RED, YELLOW, Finding, worst
from nanochat.preflight.settings import PreflightSettings
from tests.preflight.nvidia import Machine, uuid


def found(settings: PreflightSettings | None = None) -> dict[str, Finding]:
    return {finding.name: finding for finding in gpus.check(settings or PreflightSettings(nproc_per_node=8))}


def test_eight_healthy_gpus_are_green(machine: Machine) -> None:
    machine([{}] * 8)
    findings = found()
    assert list(findings) == ["GPUs", "GPU memory", "other processes", "GPU errors", "throttling"]
    assert worst(each.status for each in findings.values()) == GREEN, findings
    assert findings["GPUs"].value == "8 × NVIDIA H100 80GB HBM3"
    needs = re.fullmatch(r"79\.1 GiB free or more; this run needs (\d+\.\d)", findings["GPU memory"].value)
    assert needs
    assert 40 < float(needs[1]) < 0.95 * 79.1


FAULTS = {
    "ecc": ({"ecc.errors.uncorrected.volatile.total": "3"}, "GPU errors", RED, "3 errors of memory"),
    "remapping failed": ({"remapped_rows.failure": "Yes"}, "GPU errors", RED, "could not be replaced"),
    "remapping pending": ({"remapped_rows.pending": "Yes"}, "GPU errors", YELLOW, "replaced at the next reset"),
    "retired pages": ({"retired_pages.pending": "Yes"}, "GPU errors", YELLOW, "replaced at the next reset"),
    "hot": ({"clocks_event_reasons.active": "0x0000000000000048"}, "throttling", YELLOW, "hardware slowdown, too hot (hardware)"),
    "memory": ({"memory.free": "40960"}, "GPU memory", RED, "40.0 GiB free"),
    "slices": (
        {"mig.mode.current": "Enabled", "memory.free": "[Insufficient Permissions]", "memory.total": "[N/A]"},
        "MIG",
        YELLOW,
        "slices",
    ),
    "lanes": ({"pcie.link.width.current": "4"}, "PCIe", YELLOW, "4 of 16 PCIe lanes"),
    "kinds": ({"name": "NVIDIA A100-SXM4-80GB"}, "GPUs", YELLOW, "1 × NVIDIA A100-SXM4-80GB, 7 × NVIDIA H100"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_one_gpu_is_named(fault: str, machine: Machine) -> None:
    broken, name, status, words = FAULTS[fault]
    machine([{}] * 5 + [broken] + [{}] * 2)
    findings = found()
    assert findings[name].status == status
    assert words in findings[name].value
    assert name == "GPUs" or "GPU 5:" in findings[name].value
    assert findings[name].advice
    assert {each.name for each in findings.values() if each.status != GREEN} == {name}


@pytest.mark.parametrize("mask", ["0x0000000000000001", "0x0000000000000004", "[N/A]", "Not Active"])
def test_a_clock_that_is_low_for_a_good_reason_is_green(mask: str, machine: Machine) -> None:
    machine([{"clocks_event_reasons.active": mask}] * 8)
    assert found()["throttling"].status == GREEN


def test_older_drivers_call_things_otherwise(machine: Machine) -> None:
    machine([{"clocks_event_reasons.active": "unknown", "clocks_throttle_reasons.active": "0x80", "remapped_rows.failure": "unknown"}] * 8)
    findings = found()
    assert "power brake" in findings["throttling"].value
    assert findings["GPU errors"].status == GREEN


def test_gpus_that_count_no_errors_are_not_said_to_have_none(machine: Machine) -> None:
    machine(
        [
            {
                "name": "NVIDIA GeForce RTX 4090",
                "ecc.errors.uncorrected.volatile.total": "[N/A]",
                "memory.total": "24564",
                "memory.free": "24000",
            }
        ]
    )
    finding = found(PreflightSettings(depth=12))["GPU errors"]
    assert (finding.status, finding.value) == (GREEN, "none told of; these GPUs do not count errors of memory")


def test_other_processes_are_named_with_their_gpu(machine: Machine) -> None:
    app = {"gpu_uuid": uuid(2), "pid": "4711", "process_name": "/usr/bin/python3", "used_memory": "5120"}
    machine([{}] * 2 + [{"memory.free": "75887"}] + [{}] * 5, [app])
    findings = found()
    assert findings["other processes"].status == YELLOW
    assert findings["other processes"].value == "GPU 2: /usr/bin/python3 (4711), 5120 MiB"
    assert findings["GPU memory"].status == GREEN


def test_other_processes_are_asked_for_before_anything_that_can_wait(machine: Machine, tmp_path: Path) -> None:
    machine([{"clocks_throttle_reasons.active": "0x1"}] * 8)  # all that is asked for
    found()
    assert (tmp_path / "told.json.asked").read_text().split()[:2] == ["gpu", "compute-apps"]


def test_fewer_gpus_than_are_wanted(machine: Machine) -> None:
    machine([{}] * 7)
    assert found()["GPUs"] == Finding(
        "GPUs", RED, "7 × NVIDIA H100 80GB HBM3; 8 are wanted", "set NPROC_PER_NODE lower, or ask for another node"
    )


def test_gpus_that_are_hidden_do_not_count(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine([{}] * 3 + [{"ecc.errors.uncorrected.volatile.total": "9"}] + [{}] * 4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", f"1,{uuid(0)[:9]},2")
    assert "3 × NVIDIA H100 80GB HBM3, as CUDA_VISIBLE_DEVICES leaves them; 8 are wanted" in found()["GPUs"].value
    findings = found(PreflightSettings(depth=12, nproc_per_node=3))
    assert findings["GPUs"].status == GREEN
    assert findings["GPU errors"].status == GREEN
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert found()["GPUs"].status == RED


def test_a_driver_that_fails_is_red(machine: Machine) -> None:
    machine(says="Failed to initialize NVML: Driver/library version mismatch", status=18)
    assert found()["GPUs"].status == RED
    assert "version mismatch" in found()["GPUs"].value


def test_a_driver_that_hangs_is_red(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "QUERY_S", 0.2)
    machine([{}], hangs=60)
    assert found()["GPUs"].status == RED
    assert "has not answered" in found()["GPUs"].value


def test_a_driver_that_finds_nothing_is_yellow(machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine(says="No devices were found", status=6)
    monkeypatch.setattr(gpus, "DRIVER_FILES", (tmp_path,))
    assert found()["GPUs"].status == YELLOW


def test_a_machine_without_gpus_is_told_to_be_one(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(says="No devices were found", status=6)
    monkeypatch.setattr(gpus, "DRIVER_FILES", ())
    assert found() == {"GPUs": Finding("GPUs", GREEN, "none; this run computes on the CPU")}
