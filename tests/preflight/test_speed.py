"""Speeds: really measured on a CPU, and judged where one of eight GPUs is slow."""

from pathlib import Path
from typing import Any

import pytest

from nanochat.preflight import speed
from nanochat.preflight.check import GREEN, RED, YELLOW, Finding
from nanochat.preflight.measure import rounds
from nanochat.preflight.settings import PreflightSettings
from tests.preflight.nvidia import Machine

NODE = [
    {
        "rank": rank,
        "local_rank": rank,
        "node": 0,
        "device": "NVIDIA H100 80GB HBM3",
        "on_gpu": True,
        "flops": 640e12 + rank * 1e12,
        "finite": True,
        "slowdown": "0x0000000000000004",
        "clock_mhz": "1410",
        "degrees": "58",
        "link_bytes_per_s": 340e9,
        "next_bytes_per_s": 180e9 + rank * 1e9,
        "torch": "2.13.0",
        "error": "",
        "at": "",
    }
    for rank in range(8)
]


def judged(*changes: tuple[int, dict[str, Any]]) -> dict[str, Finding]:
    figures = [dict(each) for each in NODE]
    for rank, change in changes:
        figures[rank] |= change
    return {finding.name: finding for finding in speed.judge(figures)}


def test_a_node_of_equals_is_green() -> None:
    assert [(each.name, each.status) for each in judged().values()] == [("speed", GREEN), ("links", GREEN)]


@pytest.mark.parametrize(("flops", "status"), [(560e12, YELLOW), (300e12, RED)])
def test_a_slow_gpu_is_named_with_its_clock(flops: float, status: str) -> None:
    finding = judged((6, {"flops": flops, "clock_mhz": "900", "degrees": "88", "slowdown": "0x40"}))["speed"]
    assert (finding.status, finding.rank) == (status, 6)
    assert f"GPU 6 {flops / 1e12:.0f} (900 MHz, 88 °C, too hot (hardware))" in finding.value


def test_gpus_that_are_all_slow_are_held_against_the_table() -> None:
    finding = judged(*((rank, {"flops": 200e12}) for rank in range(8)))["speed"]
    assert finding.status == YELLOW
    assert "H100-80GB's peak is 989" in finding.value
    unknown = {"flops": 200e12, "device": "NVIDIA Unheard Of"}
    assert judged(*((rank, unknown) for rank in range(8)))["speed"].status == GREEN


def test_a_gpu_that_computes_nonsense_is_red() -> None:
    finding = judged((2, {"finite": False}))["speed"]
    assert finding.status == RED
    assert "GPU 2" in finding.value


def test_a_slow_link_is_named_by_its_two_ends() -> None:
    finding = judged((3, {"next_bytes_per_s": 20e9}))["links"]
    assert finding.status == YELLOW
    assert "GPU 3 and GPU 4 pass 20.0, others 183.0" in finding.value


def test_links_that_are_all_slow_are_held_against_the_table() -> None:
    finding = judged(*((rank, {"link_bytes_per_s": 20e9}) for rank in range(8)))["links"]
    assert finding.status == YELLOW
    assert "H100-80GB has 450 by NVLink" in finding.value


def test_links_between_nodes_are_held_against_each_other_alone() -> None:
    far = {"next_bytes_per_s": 20e9, "link_bytes_per_s": 30e9}
    figures = [{**each, "node": each["rank"] // 4, **(far if each["rank"] in (3, 7) else {})} for each in NODE]
    assert [finding.status for finding in speed.judge(figures)] == [GREEN, GREEN]


def test_nodes_with_other_versions_of_torch_are_red() -> None:
    assert judged((4, {"torch": "2.12.0"}))["torch of the nodes"].status == RED


@pytest.mark.parametrize("ranks", [2, 3, 4, 5, 8])
def test_every_pair_of_the_ring_has_its_round(ranks: int) -> None:
    made = rounds(ranks)
    for pairs in made:
        assert len({rank for pair in pairs for rank in pair}) == 2 * len(pairs)
    ring = {(i, (i + 1) % ranks) for i in range(ranks)} if ranks > 2 else {(0, 1)}
    assert sorted(pair for pairs in made for pair in pairs) == sorted(ring)


def measured(machine: Machine, monkeypatch: pytest.MonkeyPatch, directory: Path, ranks: int, seconds: float = 240) -> list[dict[str, Any]]:
    machine(says="No devices were found", status=6)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return speed.measure(PreflightSettings(nproc_per_node=ranks, seconds=seconds), directory)


def test_three_ranks_measure_together(machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    figures = measured(machine, monkeypatch, tmp_path, 3)
    assert [each["error"] for each in figures] == ["", "", ""]
    assert [each["rank"] for each in figures] == [0, 1, 2]
    assert all(each["flops"] > 0 and each["link_bytes_per_s"] > 0 and each["next_bytes_per_s"] > 0 and not each["at"] for each in figures)
    assert [(each.name, each.status) for each in speed.judge(figures)] == [("speed", GREEN), ("links", GREEN)]


def test_a_rank_that_breaks_is_red_and_named(machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(speed, "MEASURE", "tests.preflight.broken_measure")
    findings = {finding.name: finding for finding in speed.judge(measured(machine, monkeypatch, tmp_path, 1))}
    assert findings["rank 0"].status == RED
    assert findings["rank 0"].value == "at a product: RuntimeError: CUDA error: an illegal memory access was encountered"


def test_ranks_that_hang_are_ended_and_told_where(machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(speed, "MEASURE", "tests.preflight.hanging_measure")
    findings = [finding for finding in speed.judge(measured(machine, monkeypatch, tmp_path, 1, seconds=5)) if finding.status == RED]
    assert [finding.value for finding in findings] == ["at a product: not done after 5 s"]


def test_importing_torch_has_time_of_its_own(machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(speed, "MEASURE", "tests.preflight.slow_measure")
    assert [each["error"] for each in measured(machine, monkeypatch, tmp_path, 1, seconds=2)] == [""]


def test_importing_torch_without_end_is_yellow(machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(speed, "MEASURE", "tests.preflight.slow_measure")
    finding = speed.judge(measured(machine, monkeypatch, tmp_path, 1, seconds=0.4))[0]
    assert (finding.status, finding.value) == (YELLOW, "at importing torch: not done after 1 s")


def test_no_rank_begins_before_all_have_imported_torch(machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(speed, "MEASURE", "tests.preflight.late_measure")
    assert [each["error"] for each in measured(machine, monkeypatch, tmp_path, 2)] == ["", ""]


def test_gpus_that_torch_cannot_use_are_red_once(machine: Machine, tmp_path: Path) -> None:
    machine([{}] * 2)
    findings = {
        finding.name: finding for finding in speed.judge(speed.measure(PreflightSettings(depth=2, nproc_per_node=2, seconds=240), tmp_path))
    }
    assert findings["ranks 0, 1"].status == RED
    assert findings["ranks 0, 1"].value.startswith("at its device: ")
    assert findings["speed"].status == YELLOW


def test_of_ranks_that_fail_those_are_named_that_the_others_waited_for() -> None:
    def failed(rank: int, at: str, error: str) -> dict[str, Any]:
        return {"rank": rank, "local_rank": rank, "node": 0, "at": at, "error": error}

    hung = "not done after 36 s"
    waiting = [failed(rank, "meeting the other ranks", hung) for rank in (0, 1, 2)]
    assert next(each.name for each in speed.judge([*waiting, failed(3, "a product", hung)])) == "rank 3"
    reducing = [failed(rank, "an all-reduce", hung) for rank in (0, 1, 2)]
    broken, products = speed.judge([*reducing, failed(3, "an all-reduce", "DistBackendError: NCCL error: remote process exited")])
    assert (broken.name, broken.status) == ("rank 3", RED)
    assert products.name == "speed"
    assert next(each.name for each in speed.judge(reducing)) == "ranks 0, 1, 2"


def test_torch_that_is_slow_to_begin_is_no_fault_of_a_device() -> None:
    figures = [{"rank": 0, "local_rank": 0, "node": 0, "at": "importing torch", "error": "not done after 38 s"}]
    assert {finding.status for finding in speed.judge(figures)} == {YELLOW}
