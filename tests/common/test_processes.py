"""What a process asks of the system, as the system then does it."""

import os
import platform
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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc is told so with glibc alone")
def test_freed_memory_is_kept_for_what_is_asked_for_next() -> None:
    program = """
import resource
import torch
from nanochat.common.processes import keep_freed_memory

def page_faults() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = page_faults()
keep_freed_memory()
page_faults()
print(before, page_faults())
"""
    before, after = map(
        int, subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT).stdout.split()
    )
    assert after < before / 10
