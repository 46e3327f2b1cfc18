"""The GPUs at hand, by what nvidia-smi says of them."""

from pathlib import Path

import pytest

from nanochat.plan.answer import node_of
from nanochat.plan.choose import best
from nanochat.plan.settings import PlanSettings
from nanochat.plan.sizes import Shape
from nanochat.plan.step import Job
from nanochat.plan.this_machine import this_machine


def machine_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *gpus: str, status: int = 0) -> None:
    """A machine whose nvidia-smi answers these lines."""
    lines = "\n".join(gpus)
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\ncat <<'END'\n{lines}\nEND\nexit {status}\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")


def test_a_node_of_one_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    machine_with(tmp_path, monkeypatch, *["NVIDIA H100 80GB HBM3, 81559"] * 8)
    found = this_machine()
    assert found
    assert (found[0], found[1].name, found[1].memory_gib) == (8, "H100-80GB", 79.1)
    assert capsys.readouterr().err == ""


def test_of_several_kinds_the_smallest_stands_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine_with(tmp_path, monkeypatch, "NVIDIA H200, 143771", "NVIDIA H100 80GB HBM3, 81559", "NVIDIA H200, 143771")
    found = this_machine()
    assert found
    assert (found[0], found[1].name) == (3, "H100-80GB")
    assert "2 × H200" in capsys.readouterr().err


def test_an_unknown_kind_is_planned_for_and_says_that_it_is_estimated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine_with(tmp_path, monkeypatch, "NVIDIA RTX A6000, 49140", "NVIDIA RTX A6000, 49140")
    node = node_of(PlanSettings())
    assert (node.count, node.gpu.name, node.is_this_machine) == (2, "NVIDIA RTX A6000", True)
    named = node_of(PlanSettings(gpus="8xnvidia rtx a6000"))
    assert (named.count, named.gpu) == (8, node.gpu)
    assert node.gpu.memory_gib == pytest.approx(48, abs=0.1)
    assert node.gpu.usd_per_hour == 0
    plan = best(Job(Shape(12), node.gpu, 2, 2, 524_288, 32))
    assert plan.fits
    assert plan.estimated
    assert plan.basis == "estimated"


@pytest.mark.parametrize(("answer", "status"), [("No devices were found", 6), ("No devices were found", 0), ("", 0), ("GPU, [N/A]", 0)])
def test_a_machine_without_gpus_has_none(answer: str, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine_with(tmp_path, monkeypatch, answer, status=status)
    assert this_machine() is None
    node = node_of(PlanSettings())
    assert (node.count, node.gpu.name, node.is_this_machine) == (8, "H100-80GB", False)


def test_a_machine_without_a_driver_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert this_machine() is None
