"""The cage: what a hostile program tries, by every mechanism that this machine has."""

import contextlib
import ctypes
import ctypes.util
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pyseccomp
import pytest

from nanochat.sandbox import run as run_module
from nanochat.sandbox.run import Mechanism, Outcome, SandboxUnavailable, available, mechanisms, run_python, why_not

ROOT = Path(__file__).parents[2]
CAGES = [name for name in mechanisms() if not why_not(name)]


def test_this_machine_has_every_cage_that_its_kernel_allows() -> None:
    landlock_version = ctypes.CDLL(None).syscall(444, None, 0, 1) if sys.platform == "linux" else 0  # landlock_create_ruleset
    if landlock_version > 0 and ctypes.util.find_library("seccomp"):
        assert "landlock" in CAGES
    assert available() == (CAGES[0] if CAGES else None)


@pytest.fixture(params=CAGES)
def cage(request: pytest.FixtureRequest) -> Mechanism:
    name: Mechanism = request.param
    return name


def caged(program: str, cage: Mechanism, **options: float) -> Outcome:
    return run_python(program, mechanism=cage, **options)  # type: ignore[arg-type]


def test_a_program_runs_and_its_outputs_come_back(cage: Mechanism) -> None:
    outcome = caged("import math, sys\nprint(math.factorial(20))\nprint('ä', file=sys.stderr)", cage)
    assert outcome.passed
    assert outcome.stdout == "2432902008176640000\n"
    assert outcome.stderr == "ä\n"
    failed = caged("assert 1 == 2, 'no'", cage)
    assert failed.status == "failed"
    assert "AssertionError: no" in failed.stderr
    assert caged("import sys; sys.exit(3)", cage).status == "failed"


def test_time_is_limited(cage: Mechanism) -> None:
    started = time.perf_counter()
    assert caged("while True: pass", cage, timeout_s=0.6).status == "timeout"
    assert caged("import time; time.sleep(60)", cage, timeout_s=0.6).status == "timeout"
    assert time.perf_counter() - started < 10


def test_output_is_limited(cage: Mechanism) -> None:
    outcome = caged("while True: print('x' * 10_000)", cage, output_bytes=50_000)
    assert outcome.status in ("failed", "killed")
    assert len(outcome.stdout) <= 50_000


def test_nothing_outlives_a_killed_parent(cage: Mechanism) -> None:
    program = "print('under' + 'way', flush=True); import time; time.sleep(600)"
    command = f"from nanochat.sandbox.run import run_python; run_python({program!r}, timeout_s=600, mechanism={cage!r})"
    parent = subprocess.Popen([sys.executable, "-c", command], cwd=ROOT)

    def wait_for(what: Callable[[], bool]) -> bool:
        deadline = time.monotonic() + 60
        while not (there := what()) and time.monotonic() < deadline:
            time.sleep(0.02)
        return there

    def begun() -> bool:
        """Whether the caged program has printed, into a file without a name that its parent holds."""
        for path in Path(f"/proc/{parent.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed in the meantime
                if str(path.readlink()).endswith("(deleted)") and "underway" in path.read_text():
                    return True
        return False

    assert wait_for(begun)
    below = psutil.Process(parent.pid).children(recursive=True)
    assert below
    parent.kill()
    parent.wait()
    assert wait_for(lambda: not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in below))


def test_a_cage_whose_parent_is_gone_does_not_begin() -> None:
    orders = {"parent": 1, "ending": "", "cpu_s": 5, "memory_bytes": 1 << 29, "output_bytes": 1 << 16, "readable": [], "filter": ""}
    finished = subprocess.run(run_module._python(), input=json.dumps(orders).encode() + b"\nprint('begun')", capture_output=True)
    assert (finished.returncode, finished.stdout) == (1, b"")


def test_an_ending_is_printed_only_at_the_end(cage: Mechanism) -> None:
    def printed(program: str) -> str:
        return run_python(program, ending="end", mechanism=cage).stdout

    assert printed("import sys, io; print('a'); sys.stdout = io.StringIO()") == "a\nend"
    for early in ("import os; os._exit(0)", "raise SystemExit(0)", "1 / 0"):
        assert printed(early) == ""


def test_several_at_once(cage: Mechanism) -> None:
    before = threading.active_count()
    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(lambda number: caged(f"print({number})", cage), range(12)))
    assert [outcome.stdout for outcome in outcomes] == [f"{number}\n" for number in range(12)]
    assert threading.active_count() <= before


def test_where_there_is_no_cage_nothing_runs_unless_asked_to(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(run_module, "available", lambda: None)
    run_module._warn_unsafe.cache_clear()
    with pytest.raises(SandboxUnavailable, match="allow_unsafe_execution"):
        run_python("print(1)")
    assert run_python("print(1)", allow_unsafe=True).stdout == "1\n"
    assert run_python("print(1)", allow_unsafe=True).passed
    assert capfd.readouterr().err.count("without a sandbox") == 1
    assert run_python("while True: pass", allow_unsafe=True, timeout_s=0.5).status == "timeout"


@pytest.fixture
def bwrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A bubblewrap for a test to write; cages that others found are forgotten before and after."""
    program = tmp_path / "bwrap"
    program.touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    for cached in (why_not, available):
        cached.cache_clear()
    yield program
    for cached in (why_not, available):
        cached.cache_clear()


def test_a_cage_that_does_not_start_says_nothing_of_the_program(bwrap: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bwrap.write_text("#!/bin/sh\necho at first >&2; echo 'bwrap: No space left on device' >&2; exit 1")
    with pytest.raises(SandboxUnavailable, match=r"\(bubblewrap\) did not start: bwrap: No space left on device$"):
        run_python("print(1)", mechanism="bubblewrap")
    bwrap.write_text("#!/bin/sh\nexit 3")
    with pytest.raises(SandboxUnavailable, match="did not start: exit status 3"):
        run_python("print(1)", mechanism="bubblewrap")
    bwrap.write_text("#!/no/such/shell")
    with pytest.raises(SandboxUnavailable, match=r"did not start: .*No such file"):
        run_python("print(1)", mechanism="bubblewrap")
    bwrap.write_text("#!/bin/sh\nsleep 60")
    monkeypatch.setattr(run_module, "START_S", 0.5)
    with pytest.raises(SandboxUnavailable, match=r"more than 0\.5 s"):
        run_python("print(1)", mechanism="bubblewrap")


def test_time_to_start_is_not_the_programs(bwrap: Path) -> None:
    bwrap.write_text(f"#!/bin/sh\nsleep 1.5\nexec {' '.join(run_module._python())}")
    assert run_python("print(1)", timeout_s=1, mechanism="bubblewrap").stdout == "1\n"


def test_who_has_no_cage_is_told_why(bwrap: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bwrap.write_text("#!/bin/sh\necho 'bwrap: setting up uid map: Permission denied' >&2; exit 1")
    monkeypatch.setattr(run_module, "_packages", lambda: "")
    with pytest.raises(SandboxUnavailable, match=r"uid map: Permission denied.*--allow_unsafe_execution") as refused:
        run_python("print(1)")
    assert "install" not in str(refused.value)
    bwrap.unlink()
    monkeypatch.setenv("PATH", "/no/such/directory")
    for cached in (why_not, available):
        cached.cache_clear()
    with pytest.raises(SandboxUnavailable, match="apt install bubblewrap"):
        run_python("print(1)")


def _others_can_enter(directory: Path) -> bool:
    return all(each.stat().st_mode & 1 for each in (directory, *directory.parents))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_plain_user_has_a_cage_too() -> None:
    program = (
        "from nanochat.sandbox.run import available, run_python\n"
        "assert available(), 'no cage'\n"
        "assert run_python('print(2)').stdout == '2\\n'\n"
        "assert not run_python(\"open('/etc/passwd')\").passed\n"
    )
    pythons = [Path(python).resolve() for python in (sys.executable, "/usr/bin/python3") if Path(python).exists()]
    packages = Path(pyseccomp.__file__).parent
    needed = [python for python in pythons if _others_can_enter(python.parent)]
    if not needed or not _others_can_enter(ROOT) or not _others_can_enter(packages):
        pytest.skip("other users cannot enter the directory of the interpreter, of its packages or of the project")
    enter = f"import os, sys; os.setgid(65534); os.setuid(65534); sys.path[:0] = [{str(ROOT)!r}, {str(packages)!r}]"
    finished = subprocess.run(
        [needed[0], "-c", f"{enter}\n{program}"],
        cwd="/",
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
