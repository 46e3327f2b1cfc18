"""Running a program that nobody trusts: an own process without network, without files, with limits that the kernel enforces."""

import contextlib
import functools
import json
import os
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
from pathlib import Path
from typing import IO, Literal

from nanochat.common.console import warn
from nanochat.common.errors import UserError
from nanochat.sandbox import system_calls

Mechanism = Literal["bubblewrap", "namespaces", "landlock", "unsafe"]
Status = Literal["passed", "failed", "timeout", "killed"]

INSIDE = Path(__file__).with_name("inside.py")
MIB = 1 << 20
LIBRARIES = ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/lib", "/lib64", "/etc/ld.so.cache")


class SandboxUnavailable(UserError):
    """This machine has nothing that model-written code could be run in."""


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
    Raises SandboxUnavailable where there is none, unless allow_unsafe.
    """
    mechanism = mechanism or available()
    if mechanism is None:
        if not allow_unsafe:
            raise SandboxUnavailable(
                "model-written code cannot be run safely here: install bubblewrap (apt install bubblewrap), or let it run with your own "
                "rights by --allow_unsafe_execution"
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
    payload = json.dumps(orders).encode() + b"\n" + program.encode("utf-8", "replace")
    started = time.perf_counter()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, tempfile.TemporaryDirectory() as empty:
        process = subprocess.Popen(
            [*_prefix(mechanism), *_python()],
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=err,
            cwd=empty if mechanism == "unsafe" else "/",
            env={"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"},
            close_fds=True,
            start_new_session=True,
        )
        timed_out = False
        try:
            process.communicate(payload, timeout=timeout_s)
        except subprocess.TimeoutExpired:
            timed_out = True
        finally:
            _end(process)
        texts = [_head(file, output_bytes) for file in (out, err)]
    status: Status = "timeout" if timed_out else "passed" if process.returncode == 0 else "killed" if process.returncode < 0 else "failed"
    return Outcome(status, texts[0], texts[1], time.perf_counter() - started)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill whatever is left. With a cage around it the program is alone in its process; bubblewrap's and unshare's die together."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _head(file: IO[bytes], size: int) -> str:
    file.seek(0)
    return file.read(size).decode("utf-8", "replace")


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
    return next((mechanism for mechanism in mechanisms() if _works(mechanism)), None)


def mechanisms() -> Sequence[Mechanism]:
    """Those whose parts are installed, the best first."""
    if sys.platform != "linux":
        return ()
    try:
        system_calls.bpf()
    except (ImportError, RuntimeError, OSError, AttributeError):  # no libseccomp
        return ()
    found: list[Mechanism] = ["bubblewrap"] if shutil.which("bwrap") else []
    if _packages():
        found += ["namespaces", "landlock"] if shutil.which("unshare") and shutil.which("setpriv") else ["landlock"]
    return found


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


def _works(mechanism: Mechanism) -> bool:
    """Whether a cage starts, and holds."""
    try:
        return run_python(PROBE, timeout_s=20, mechanism=mechanism).passed
    except OSError:
        return False


@functools.cache
def _warn_unsafe() -> None:
    warn("model-written code runs without a sandbox: it can do whatever you can")
