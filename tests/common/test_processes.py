"""A process whose starter has died before it could ask the kernel to end with it."""

import os
import signal
import subprocess
import sys

import pytest

from tests.conftest import ROOT

PROGRAM = "from nanochat.common.processes import die_with_starter; die_with_starter(); print('lives')"


def run(**environment: str) -> "subprocess.CompletedProcess[str]":
    kept = {key: value for key, value in os.environ.items() if key not in ("TORCHELASTIC_RUN_ID", "NANOCHAT_DIES_WITH")}
    return subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, env={**kept, **environment}, capture_output=True, text=True)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux ends a process with its starter")
@pytest.mark.parametrize("reaped", [True, False])
@pytest.mark.parametrize("rank", [{}, {"TORCHELASTIC_RUN_ID": "job"}])
def test_it_ends_too(rank: dict[str, str], reaped: bool) -> None:
    starter = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert run(NANOCHAT_DIES_WITH=str(starter.pid), **rank).stdout == "lives\n"
    starter.kill()
    if reaped:
        starter.wait()
    else:
        os.waitid(os.P_PID, starter.pid, os.WEXITED | os.WNOWAIT)
    ended = run(NANOCHAT_DIES_WITH=str(starter.pid), **rank)
    assert (ended.returncode, ended.stdout) == (-signal.SIGKILL, "")
    starter.communicate()


def test_without_one_it_lives() -> None:
    assert run().stdout == "lives\n"
    assert run(TORCHELASTIC_RUN_ID="job").stdout == "lives\n"
