"""Two revisions or two settings are compared, step by step."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT, World, wrong_request

FLAGS = "--flags=--depth=1 --max_seq_len=64 --device_batch_size=2 --total_batch_size=256 --precision=fp32 --no-compile"
STEPS = "--num_iterations=6"


def test_settings_that_change_nothing_are_identical_and_others_part(world: World) -> None:
    runs = sorted((world.base / "runs").glob("*"))
    same = world.run("scripts.compare_loss", ".", ". --save_every=-1", FLAGS, STEPS)
    assert same.returncode == 0, same.stderr
    assert "identical: 6 losses, bit for bit" in same.stdout
    part = world.run("scripts.compare_loss", ". --matrix_lr=0.02", ". --matrix_lr=0.03", FLAGS, STEPS)
    assert part.returncode == 1, part.stderr
    assert "they part at step 3:" in part.stdout  # the head begins at zero: layers have a gradient from the second step on
    near = world.run("scripts.compare_loss", ". --matrix_lr=0.02", ". --matrix_lr=0.03", FLAGS, STEPS, "--tolerance=5")
    assert near.returncode == 0
    assert "alike within 5" in near.stdout
    assert sorted((world.base / "runs").glob("*")) == runs


@pytest.mark.skipif(not shutil.which("git") or not (ROOT / ".git").exists(), reason="these files are no git repository")
def test_a_revision_is_compared_with_the_files_as_they_are(world: World, tmp_path: Path) -> None:
    there = subprocess.run(["git", "worktree", "list"], cwd=ROOT, capture_output=True, text=True).stdout
    found = world.run("scripts.compare_loss", "HEAD", ". --matrix_lr=0.02", FLAGS, STEPS, "--tolerance=1")
    assert found.returncode == 0, found.stderr
    assert "a: HEAD" in found.stdout
    assert subprocess.run(["git", "worktree", "list"], cwd=ROOT, capture_output=True, text=True).stdout == there
    wrong_request(world.run("scripts.compare_loss", "no-such-revision", "HEAD", FLAGS), "no-such-revision")


def test_wrong_requests(world: World) -> None:
    wrong_request(world.run("scripts.compare_loss", ". --depth=13", ".", FLAGS), "side a", "--depth=13")
    wrong_request(world.run("scripts.compare_loss", "'", ".", FLAGS), "quotation")
    wrong_request(world.run("scripts.compare_loss", "", ".", FLAGS), "a git revision or .")
    wrong_request(world.run("scripts.compare_loss", ".", ".", "-n", "0"), "--num_iterations=0")
