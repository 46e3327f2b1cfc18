"""A warm process is to its caller what a process of its own is."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests import warm
from tests.conftest import World

PROGRAM = """
import atexit, os, sys
atexit.register(print, "at exit")
print(os.getcwd(), os.environ["NANOCHAT_BASE_DIR"], sys.argv[1:], "Größe", __name__)
print("told", file=sys.stderr)
ends = sys.argv[1]
if ends == "raises":
    raise ValueError("no good")
if ends == "killed":
    sys.stdout.flush()
    os.kill(os.getpid(), 9)
sys.exit({"well": None, "status": 75, "words": "in words"}[ends])
"""


@pytest.mark.parametrize("ends", ["well", "status", "words", "raises", "killed"])
def test_it_ends_and_speaks_as_python_does(tmp_path: Path, ends: str) -> None:
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    environment = World(tmp_path / "base dir").environment(PYTHONIOENCODING="utf-8")
    assert not warm.fits(environment)  # it is read when Python starts
    environment = World(tmp_path / "base dir").environment()
    assert warm.fits(environment)
    mine = warm.run("program", [ends, "a b"], tmp_path, environment, timeout=60)
    command = [sys.executable, "-m", "program", ends, "a b"]
    own = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert (mine.returncode, mine.stdout) == (own.returncode, own.stdout)
    assert mine.stderr.splitlines()[-1:] == own.stderr.splitlines()[-1:]
    assert mine.args == command


def test_one_that_takes_too_long_is_killed(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text("import time\nprint('began', flush=True)\ntime.sleep(60)\n")
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        warm.run("program", [], tmp_path, World(tmp_path).environment(), timeout=2)
    assert caught.value.stdout == "began\n"
