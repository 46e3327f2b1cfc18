"""Versions: of packages against what is asked for, of torch's CUDA against a driver that is played by a library of its own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nanochat.preflight import versions
from nanochat.preflight.check import GREEN, RED, YELLOW
from nanochat.preflight.settings import PreflightSettings
from tests.conftest import ROOT
from tests.preflight.nvidia import Machine


def project(tmp_path: Path, *requirements: str, pinned: str) -> Path:
    (tmp_path / "pyproject.toml").write_text(f"[project]\nname = 'x'\ndependencies = {list(requirements)}\n")
    (tmp_path / "constraints.txt").write_text(f"numpy==0.1\ntorch=={pinned}\n")
    return tmp_path


def test_what_is_installed_here_is_what_this_project_asks_for() -> None:
    finding = versions.packages()
    assert finding.status in (GREEN, YELLOW)
    assert "torch 2." in finding.value


def test_packages_that_are_missing_or_of_another_version(tmp_path: Path) -> None:
    root = project(tmp_path, "numpy>=99", "no-such-package>=1", "safetensors>=0.1", "no-such-either; sys_platform == 'beos'", pinned="1.0")
    finding = versions.packages(root)
    assert finding.status == YELLOW
    assert "no-such-package is missing" in finding.value
    assert "not >=99" in finding.value
    assert "safetensors" not in finding.value
    assert "either" not in finding.value


def test_a_torch_that_is_too_old_or_missing_is_red(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = project(tmp_path, "torch>=99", pinned="99.0")
    assert versions.packages(root).status == RED
    monkeypatch.setattr(versions, "_version", lambda name: "")
    assert versions.packages(root).status == RED
    assert "torch is missing" in versions.packages(root).value


def test_another_torch_than_the_tested_one_is_yellow(tmp_path: Path) -> None:
    finding = versions.packages(project(tmp_path, "torch>=2", pinned="2.0.99"))
    assert finding.status == YELLOW
    assert "tested with torch 2.0.99" in finding.value


DRIVER = "int cuDriverGetVersion(int *version) { *version = %d; return 0; }\n"


@pytest.mark.parametrize(
    ("known", "built", "status", "words"),
    [
        (12080, "'12.8'", GREEN, "driver 570.86.15 knows CUDA 12.8, torch is built for 12.8"),
        (12020, "'12.8'", GREEN, "knows CUDA 12.2"),
        (12080, "'13.0'", RED, "torch is built for 13.0"),
        (12080, "None", RED, "torch is built without CUDA"),
        (None, "'12.8'", RED, "libcuda.so.1 cannot be loaded"),
    ],
)
def test_the_driver_against_torchs_cuda(machine: Machine, tmp_path: Path, known: int | None, built: str, status: str, words: str) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("a library is made with gcc")
    machine([{}])
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").write_text("raise SystemExit('torch takes seconds, and is not to be imported')\n")
    (tmp_path / "torch/version.py").write_text(f"cuda = {built}\n")
    if known is not None:
        (tmp_path / "driver.c").write_text(DRIVER % known)
        subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(tmp_path / "libcuda.so.1"), str(tmp_path / "driver.c")], check=True)
    elif versions.cuda_of_driver() is not None:
        pytest.skip("this machine has a driver")
    program = "from nanochat.preflight.versions import cuda; print(*[(each.status, each.value) for each in cuda()], sep='\\n')"
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}", "LD_LIBRARY_PATH": str(tmp_path)}
    finished = subprocess.run([sys.executable, "-c", program], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.startswith(f"('{status}'")
    assert words in finished.stdout


def test_without_a_gpu_nobody_asks_for_its_driver(machine: Machine) -> None:
    machine(says="No devices were found", status=6)
    assert [finding.name for finding in versions.check(PreflightSettings())] == ["versions"]
