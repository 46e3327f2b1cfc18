"""Hostile programs in every cage that this machine can make: none gets what it is after, and the process that runs them stays as it was."""

import json
import os
import platform
import subprocess
import sys
from functools import cache
from typing import Any

import pytest

from nanochat.sandbox import system_calls
from nanochat.sandbox.calculator import answer
from nanochat.sandbox.run import Mechanism, mechanisms, run_python, why_not
from tests.conftest import ROOT
from tests.sandbox.attempts import ALONE, BATCHES, NEEDS_MORE, SECRET

CAGES = [name for name in mechanisms() if not why_not(name)]

knows_numbers = pytest.mark.skipif(platform.machine() != "x86_64" or sys.platform != "linux", reason="the attempts know x86-64's numbers")


@cache
def made(cage: str) -> dict[tuple[str | None, str], Any]:
    """What became of every attempt, by its batch and name."""
    command = [sys.executable, "-m", "tests.sandbox.victim", cage]
    environment = {**os.environ, SECRET: "hf_canary-77ab"}
    finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, start_new_session=True)
    assert finished.returncode == 0, finished.stderr
    return {(of, name): what for of, name, what in map(json.loads, finished.stdout.splitlines())}


def test_there_are_many_attempts() -> None:
    assert sum(map(len, BATCHES.values())) + len(ALONE) > 200


@knows_numbers
@pytest.mark.parametrize("cage", CAGES)
def test_no_attempt_succeeds(cage: Mechanism) -> None:
    found = made(cage)
    honest = found.pop(("alone", "an honest program"))
    most_kib = found.pop((None, "most memory, KiB"))
    changed = found.pop((None, "changed"))
    assert honest == "escaped"  # or nothing below would be proven
    assert {key: what for key, what in found.items() if what.startswith("escaped") or what == "was not made"} == {}
    assert set(found) == {(of, name) for of, attempts in [*BATCHES.items(), ("alone", ALONE)] for name in attempts}
    assert changed == {}
    assert most_kib < 600 * 1024


@knows_numbers
def test_the_same_attempts_succeed_without_a_cage() -> None:
    """Or the test above would prove nothing."""
    found = made("none")
    failed = {(of, name): what for (of, name), what in found.items() if of and what != "escaped" and name not in NEEDS_MORE.get(of, ())}
    assert failed == {}
    assert sum(what == "escaped" for what in found.values()) > 130
    before, after = zip(*(found[None, "changed"][key] for key in ("signals", "heard")), strict=True)
    assert before == (0, [])
    assert after[0] >= 5
    assert {"tcp", "local", "abstract", "udp"} <= set(after[1])


SWEEP = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
for number in range(1024):
    if number not in (*ALLOWED, 335, 336):  # these two are the kernel's own way back from a probe, and kill whoever else makes them
        got = libc.syscall(number, *[ctypes.c_long(-1)] * 6)
        assert (got, ctypes.get_errno()) == (-1, 1), (number, got, ctypes.get_errno())
print("swept")
"""


@pytest.mark.parametrize("cage", CAGES)
def test_a_system_call_that_is_not_named_is_refused_whatever_its_number(cage: Mechanism) -> None:
    import pyseccomp

    names = [*system_calls.ALLOWED.split(), "open", "openat", "madvise", "ioctl", "fcntl", "prlimit64"]
    numbers = [pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name) for name in names]
    outcome = run_python(f"ALLOWED = {sorted(numbers)}\n{SWEEP}", mechanism=cage, timeout_s=60)
    assert outcome.stdout == "swept\n", outcome.stderr


EXPRESSIONS = [
    "__import__('os').system('id')",
    "open('/etc/passwd').read()",
    "exec('1')",
    "eval('1')",
    "().__class__.__bases__[0].__subclasses__()",
    "'a'.__class__",
    "'a'.__class__.__mro__",
    "(1).__class__",
    "len.__self__",
    "'{0.__class__}'.format(1)",
    "'%s' % 1",
    "f'{1}'",
    "f'{().__class__}'",
    "'a'.encode()",
    "'a'.join(['b'])",
    "'a'.format_map({})",
    "'a'.count.__self__",
    "'a'.split(sep='a')",
    "'a'.replace(*['a', 'b'])",
    "'a'.replace('', 'b' * 99)",
    "lambda: 1",
    "(x := 1)",
    "[x for x in (1,)]",
    "{1: 2}",
    "[1, 2]",
    "1 if 1 else 2",
    "1 and 2",
    "not 1",
    "1 < 2",
    "~1",
    "1 << 9999999999",
    "1 | 2",
    "1 @ 2",
    "x",
    "__builtins__",
    "print(1)",
    "len",
    "len(len)",
    "True",
    "None",
    "...",
    "b'a'",
    "1j",
    "await x",
    "yield",
    "import os",
    "a = 1",
    "1; 2",
    "1\n2",
    "9**9**9**9",
    "2**100000",
    "(-8)**0.5",
    "10**3000 * 10**3000",
    "9" * 999,
    "1e999 * 1",
    "'a' * 10**9",
    "10**9 * 'a'",
    "'a'[0](1)",
    "'abc'[::0]",
    "'abc'[99]",
    "'abc'['a']",
    "'abc'[0.5]",
    "'" + "a" * 2000 + "'",
    "(" * 900 + "1" + ")" * 90,
    "-" * 900 + "1",
    "+".join(["1"] * 400),
    "'a'" + ".replace('a','aa')" * 40,
    "'a'" + ".replace('a','aaaaaaaaaa')" * 20,
    "\0",
    "1\0",
    "\ud800",
    "#",
    "",
    "'a'.upper.__func__",
    "''.split.__call__()",
    "'a'.split()[0].__class__",
]


@pytest.mark.parametrize("expression", EXPRESSIONS, ids=range(len(EXPRESSIONS)))
def test_the_calculator_only_calculates(expression: str) -> None:
    assert answer(expression).startswith("error: "), expression


def test_the_calculator_does_calculate() -> None:
    """Or the test above would prove nothing."""
    assert [answer(text) for text in ("1 + 2", "'strawberry'.count('r')", "2**100")] == ["3", "3", str(2**100)]
