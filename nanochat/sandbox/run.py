"""Running a program that nobody trusts: an own process without network, without files, with limits that the kernel enforces."""

import contextlib
import functools
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from io import FileIO
from pathlib import Path
from typing import IO, Any, Literal

from nanochat.common.console import warn
from nanochat.common.errors import UserError
from nanochat.sandbox import system_calls

Mechanism = Literal["bubblewrap", "namespaces", "landlock", "unsafe"]
Status = Literal["passed", "failed", "timeout", "killed"]

INSIDE = Path(__file__).with_name("inside.py")
MIB = 1 << 20
START_S = 60  # that a cage may take, on a busy machine, until its program begins
LIBRARIES = ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/lib", "/lib64", "/etc/ld.so.cache")


class SandboxUnavailable(UserError):
    """This machine has nothing that model-written code could be run in, or could not start it now."""


@dataclass(frozen=True)
class Outcome:
    """What became of a program."""

    status: Status
    stdout: str
    stderr: str
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether it ran to its end without an error."""
        return self.status == "passed"


def run_python(
    program: str,
    *,
    timeout_s: float = 5.0,
    memory_mib: int = 512,
    output_bytes: int = 64 * 1024,
    ending: str = "",
    allow_unsafe: bool = False,
    mechanism: Mechanism | None = None,
) -> Outcome:
    """Run a Python program in a cage; when this returns, nothing of it runs any more. Several threads may call it at once.

    It sees the standard library and no other file, writes none, has no network, starts no process, and has `timeout_s` seconds,
    `memory_mib` of address space and `output_bytes` for each of its outputs. ending: printed once the program has run to its end, and
    not where it leaves early. mechanism: for tests; default the best there is.
    Raises SandboxUnavailable where there is none, unless allow_unsafe, and where the program did not begin: that says nothing of it.
    """
    mechanism = mechanism or available()
    if mechanism is None:
        if not allow_unsafe:
            raise SandboxUnavailable(
                f"model-written code cannot be run safely here ({_why_none()}); --allow_unsafe_execution lets it run with your own rights"
            )
        _warn_unsafe()
        mechanism = "unsafe"
    orders = {
        "parent": os.getpid() if mechanism in ("landlock", "unsafe") else 0,
        "ending": ending,
        "cpu_s": int(timeout_s) + 1,
        "memory_bytes": memory_mib * MIB,
        "output_bytes": output_bytes,
        "readable": _readable() if mechanism in ("namespaces", "landlock") else [],
        "packages": _packages() if mechanism in ("namespaces", "landlock") else "",
        "filter": "" if mechanism == "unsafe" else system_calls.bpf().hex(),
    }
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, tempfile.TemporaryDirectory() as empty:
        process, begun = _start(mechanism, orders, program, out, err, empty if mechanism == "unsafe" else "/")
        started, has_begun, timed_out = time.perf_counter(), False, False
        try:
            if has_begun := _begins(begun):
                started = time.perf_counter()
                process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            timed_out = True
        finally:
            _end(process)
            begun.close()
        seconds = time.perf_counter() - started
        texts = [_head(file, output_bytes) for file in (out, err)]
    if not has_begun:
        why = f"it took more than {START_S} s" if seconds >= START_S else _last_line(texts[1]) or f"exit status {process.returncode}"
        raise SandboxUnavailable(f"a cage ({mechanism}) did not start: {why}")
    status: Status = "timeout" if timed_out else "passed" if process.returncode == 0 else "killed" if process.returncode < 0 else "failed"
    return Outcome(status, texts[0], texts[1], seconds)


def _start(
    mechanism: Mechanism, orders: dict[str, Any], program: str, out: IO[bytes], err: IO[bytes], directory: str
) -> tuple[subprocess.Popen[bytes], FileIO]:
    """The process, and what it says that its program begins by. The program finds that closed: it can neither say it nor unsay it."""
    readable, writable = os.pipe()
    begun = FileIO(readable)
    with FileIO(writable, "w"), tempfile.TemporaryFile() as given:
        given.write(json.dumps({**orders, "begun": writable}).encode() + b"\n" + program.encode("utf-8", "replace"))
        given.seek(0)
        try:
            process = subprocess.Popen(
                [*_prefix(mechanism), *_python()],
                stdin=given,
                stdout=out,
                stderr=err,
                cwd=directory,
                env={"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"},
                pass_fds=(writable,),  # and no other
                start_new_session=True,
            )
        except OSError as error:  # too many processes, say
            raise SandboxUnavailable(f"a cage ({mechanism}) did not start: {error}") from None
    return process, begun


def _begins(begun: FileIO) -> bool:
    """Wait until the program begins; False where the cage ends before that, or takes too long."""
    waiting = select.poll()
    waiting.register(begun, select.POLLIN)
    return bool(waiting.poll(START_S * 1000)) and begun.read(1) != b""


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill whatever is left. With a cage around it the program is alone in its process; bubblewrap's and unshare's die together."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _head(file: IO[bytes], size: int) -> str:
    file.seek(0)
    return file.read(size).decode("utf-8", "replace")


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]


def _python() -> list[str]:
    # -I: no environment, no user's packages; -S: no site-packages; -B: no bytecode written.
    return [str(Path(sys.executable).resolve()), "-I", "-S", "-B", str(INSIDE)]


@functools.cache
def _standard_library() -> list[str]:
    paths = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), sysconfig.get_config_var("LIBDIR")}
    return sorted(str(Path(path).resolve()) for path in paths if path and Path(path).is_dir())


def _readable() -> list[str]:
    return [path for path in dict.fromkeys([*_standard_library(), *LIBRARIES]) if Path(path).exists()]


@functools.cache
def _packages() -> str:
    spec = find_spec("py_landlock")
    return str(Path(spec.origin).parents[1]) if spec and spec.origin else ""


def _prefix(mechanism: Mechanism) -> list[str]:
    """The command that the interpreter is started through."""
    if mechanism == "bubblewrap":
        seen = [*_standard_library(), *LIBRARIES, str(Path(sys.executable).resolve()), str(INSIDE)]
        binds = [word for path in dict.fromkeys(seen) for word in ("--ro-bind-try", path, path)]
        # fmt: off
        return [
            str(shutil.which("bwrap")), "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL",
            *binds, "--remount-ro", "/", "--chdir", "/",  # no /proc: root may write to /proc/sys in any namespace
        ]
        # fmt: on
    if mechanism in ("landlock", "unsafe"):
        return []
    # fmt: off
    return [
        str(shutil.which("setpriv")), "--pdeathsig", "KILL",  # a killed parent takes unshare with it, and that its child
        str(shutil.which("unshare")), "--user", "--net", "--ipc", "--uts", "--pid", "--mount", "--fork", "--kill-child",
    ]
    # fmt: on


@functools.cache
def available() -> Mechanism | None:
    """The best cage that works here, found out by trying once; None where none does.

    Bubblewrap gives the program a file system and namespaces of its own. Without it Landlock hides the files, in namespaces where
    these are allowed; in both cases seccomp leaves only the system calls that computing needs.
    """
    return next((mechanism for mechanism in mechanisms() if not why_not(mechanism)), None)


def mechanisms() -> Sequence[Mechanism]:
    """Those whose parts are installed, the best first."""
    if sys.platform != "linux" or not _has_filter():
        return ()
    found: list[Mechanism] = ["bubblewrap"] if shutil.which("bwrap") else []
    if _packages():
        found += ["namespaces", "landlock"] if shutil.which("unshare") and shutil.which("setpriv") else ["landlock"]
    return found


def _has_filter() -> bool:
    try:
        return bool(system_calls.bpf())
    except (ImportError, RuntimeError, OSError, AttributeError):  # no libseccomp
        return False


PROBE = """
import os, socket
def refused(what, error=OSError):
    try:
        what()
    except error:
        return True
    return False
assert refused(lambda: socket.socket()) and refused(os.fork) and refused(lambda: open("/etc/passwd"))
assert refused(lambda: open("/tmp/x", "w")) and refused(lambda: os.kill(os.getppid(), 0))
assert refused(lambda: os.truncate("/no/such/file", 0), PermissionError)
assert refused(lambda: os.open("/proc/sys/kernel/core_pattern", os.O_WRONLY))
"""


@functools.cache
def why_not(mechanism: Mechanism) -> str:
    """Why a cage does not start or does not hold here, found out by trying once; empty where it does."""
    try:
        outcome = run_python(PROBE, timeout_s=20, mechanism=mechanism)
    except SandboxUnavailable as error:
        return str(error)
    return "" if outcome.passed else f"a cage ({mechanism}) does not hold: {_last_line(outcome.stderr) or outcome.status}"


def _why_none() -> str:
    """Why no cage can be made here, and what would help."""
    if sys.platform != "linux":
        return "cages are made on Linux only"
    if not _has_filter():
        return "libseccomp is missing: apt install libseccomp2"
    tried = [why_not(mechanism) for mechanism in mechanisms()]
    if "bubblewrap" not in mechanisms():
        tried.append("bubblewrap is not installed: apt install bubblewrap")
    return "; ".join(tried)


@functools.cache
def _warn_unsafe() -> None:
    warn("model-written code runs without a sandbox: it can do whatever you can")
