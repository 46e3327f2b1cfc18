"""A run with secrets all around it: neither what it prints nor anything that it leaves on disk holds one."""

import json
import subprocess
from pathlib import Path

import psutil
import pytest

from nanochat.train.mirroring import Mirroring
from tests.conftest import TINY, World, wrong_request

SECRETS = {
    "HF_TOKEN": "hf_" + "Qz7" * 11,
    "WANDB_API_KEY": "5e" * 20,
    "MY_PASSWORD": "hunter2hunter2",
    "OPENAI_API_KEY": "sk-abcdefghijklmnop",
}
ADDRESS = "https://me:pass-of-an-address@example.org/runs"
MIRROR = "memory://me:pass-of-an-address@bucket/runs"
VALUES = [*SECRETS.values(), "pass-of-an-address"]


def holding(base: Path) -> list[str]:
    """The files that hold a secret."""
    return [
        f"{path.relative_to(base)}: {value}"
        for path in sorted(base.rglob("*"))
        if path.is_file()
        for value in VALUES
        if value.encode() in path.read_bytes() or value in path.name
    ]


@pytest.mark.parametrize("nproc", [0, 2])
def test_nothing_of_a_run_holds_a_secret(world: World, nproc: int, tmp_path: Path) -> None:
    tag = f"secret-{nproc}"
    flags = (*TINY, "--num_iterations=4", "--save_every=2", f"--model_tag={tag}", f"--run={SECRETS['MY_PASSWORD']} of {ADDRESS}")
    mirrored = f"--checkpoint_mirror={MIRROR}"
    finished = world.run("scripts.base_train", *flags, mirrored, nproc=nproc, WANDB_MODE="offline", **SECRETS)
    assert finished.returncode == 0, finished.stderr
    kept = world.base / "runs" / tag / "base"
    assert json.loads((kept / "config.json").read_text())["settings"]["run"] == "*** of https://***@example.org/runs"
    assert "to memory://***@bucket/runs" in finished.stdout
    assert list(kept.glob("wandb/offline-run-*/*.wandb"))
    report = world.arguments("scripts.report", f"--model_tag={tag}")
    told = subprocess.run(report, cwd=tmp_path, env=world.environment(**SECRETS), capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    said = finished.stdout + finished.stderr + told.stdout + told.stderr
    assert [value for value in VALUES if value in said] == []
    assert holding(world.base) == []
    assert "https://***@example.org" in (tmp_path / "report.md").read_text()
    assert holding(tmp_path) == []


def test_nor_does_a_wrong_request(world: World) -> None:
    wrong = world.run("scripts.base_train", *TINY, f"--bundle={ADDRESS}", "--core_metric_every=1", "--model_tag=secret-wrong", **SECRETS)
    wrong_request(wrong, "https://***@example.org")
    assert holding(world.base) == []


def test_the_address_of_a_mirror_is_not_in_the_list_of_processes(tmp_path: Path) -> None:
    copying = Mirroring(tmp_path, MIRROR, -1)
    try:
        arguments = psutil.Process(copying._process.pid).cmdline()
    finally:
        copying.kill()
    assert "nanochat.train.mirroring" in arguments
    assert "pass-of-an-address" not in " ".join(arguments)


def test_a_file_that_holds_one_is_found(tmp_path: Path) -> None:
    """Or the tests above would prove nothing."""
    (tmp_path / "log").write_text(f"logged in as {SECRETS['HF_TOKEN']}")
    assert holding(tmp_path) == [f"log: {SECRETS['HF_TOKEN']}"]
