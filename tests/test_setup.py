"""The virtual environment that the run scripts make, in a shell of somebody's own as well."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT, Finished

FAILING_PIP = '#!/bin/bash\ncase "$*" in *install*) echo "no space left" >&2; exit 1 ;; esac\n'


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What set-up reads, in a checkout where nothing is installed."""
    for name in ("setup.sh", "pyproject.toml", "constraints.txt"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    return tmp_path


def shell(checkout: Path, program: str, **environment: str) -> Finished:
    own = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    command = ["bash", "-c", program]
    return subprocess.run(command, cwd=checkout, env={**own, **environment}, capture_output=True, text=True, timeout=30)


def test_without_a_python_it_says_so_and_leaves_the_shell_open(checkout: Path) -> None:
    tools = checkout / "tools"
    tools.mkdir()
    for name in ("bash", "cat", "cksum", "grep"):
        (tools / name).symlink_to(shutil.which(name) or "")
    said = shell(checkout, "source ./setup.sh; setup base; echo still here after $?", PATH=str(tools))
    assert "error: no Python 3.11 or newer found" in said.stderr
    assert said.stdout == "still here after 2\n"
    assert shell(checkout, "set -e; source ./setup.sh; setup base; echo went on", PATH=str(tools)).returncode == 2


def test_an_installation_that_fails_is_not_taken_for_one_that_is_done(checkout: Path) -> None:
    python = checkout / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(FAILING_PIP)
    python.chmod(0o755)
    for _ in range(2):
        said = shell(checkout, "source ./setup.sh; setup base && echo went on; echo still here")
        assert "no space left" in said.stderr
        assert said.stdout.splitlines()[-1] == "still here"
        assert "went on" not in said.stdout
    assert not (checkout / ".venv/complete").exists()
