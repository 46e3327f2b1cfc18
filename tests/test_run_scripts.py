"""The run scripts before they begin: what they refuse, at once and in one sentence."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run_script(tmp_path: Path, script: str, *args: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a script on a machine whose driver finds no GPU, with the tests' own Python as the active environment."""
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'No devices were found'\nexit 6\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    kept = {k: v for k, v in os.environ.items() if k not in ("NPROC_PER_NODE", "NNODES", "NODE_RANK", "MASTER_ADDR")}
    path = f"{tmp_path}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**kept, "PATH": path, "VIRTUAL_ENV": sys.prefix, "NANOCHAT_BASE_DIR": str(tmp_path / "base"), **more}
    return subprocess.run(["bash", str(ROOT / script), *args], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("script", ["run3b.sh", "run7b.sh"])
def test_without_a_gpu_one_sentence_names_the_rehearsal(script: str, tmp_path: Path) -> None:
    finished = run_script(tmp_path, script)
    assert finished.returncode == 2
    assert finished.stdout == ""
    assert finished.stderr.count("\n") == 1
    assert f"bash {script} --rehearse" in finished.stderr


def test_an_unknown_flag_is_refused(tmp_path: Path) -> None:
    finished = run_script(tmp_path, "run3b.sh", "--reherse")
    assert finished.returncode == 2
    assert "--reherse" in finished.stderr
    assert finished.stdout == ""


def test_several_nodes_need_their_rank_and_the_first_ones_address(tmp_path: Path) -> None:
    several = {"NPROC_PER_NODE": "1", "NNODES": "2"}
    assert "NODE_RANK" in run_script(tmp_path, "run3b.sh", **several).stderr
    finished = run_script(tmp_path, "run3b.sh", NODE_RANK="0", **several)
    assert finished.returncode != 0
    assert "MASTER_ADDR" in finished.stderr
    assert not (tmp_path / "base").exists()


@pytest.mark.parametrize(("name", "value"), [("NNODES", "abc"), ("NPROC_PER_NODE", "-1"), ("NPROC_PER_NODE", "7")])
def test_numbers_that_cannot_be_are_refused_before_anything_is_fetched(name: str, value: str, tmp_path: Path) -> None:
    finished = run_script(tmp_path, "run3b.sh", **{"NPROC_PER_NODE": "1", name: value})
    assert finished.returncode == 2
    assert value in finished.stderr
    assert not (tmp_path / "base").exists()


def test_both_scripts_hold_the_guides_sizes() -> None:
    for script, sizes in (("run3b.sh", (38, 48, 786_432)), ("run7b.sh", (52, 24, 393_216))):
        lines = (ROOT / script).read_text().splitlines()
        names = ("DEPTH", "DEVICE_BATCH_SIZE", "TOTAL_BATCH_SIZE")
        assert [f"{name}={size}" for name, size in zip(names, sizes, strict=True)] == [line for line in lines if line.startswith(names)]
