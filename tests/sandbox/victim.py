"""The process that hostile programs are after: with secrets, open descriptors, listeners and files beside it. It runs them and reports.

python -m tests.sandbox.victim CAGE: a line of JSON for each attempt, `[batch, name, what became of it]`, where `escaped` is what must not
be; then `[null, "changed", …]` with whatever of the victim's own is not as it was. CAGE `none` runs them without one, in processes and
directories of their own. Its environment holds SECRET.
"""

import _ctypes
import contextlib
import ctypes
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

from nanochat.sandbox.run import INSIDE, Outcome, run_python
from tests.sandbox.attempts import ALONE, BATCHES, CANARY, SECRET

PRELUDE = """
import ctypes, json, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    got = libc.syscall(*(ctypes.c_long(each) if isinstance(each, int) else each for each in (number, *arguments)))
    if got == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return got
def vector(number, buffer):
    mine = (ctypes.c_ulong * 2)(ctypes.addressof(buffer), 16)
    assert call(number, VICTIM, mine, 1, (ctypes.c_ulong * 2)(ADDRESS, 16), 1, 0) == 16
"""
EACH = """
for name, code in ATTEMPTS.items():
    child = os.fork() if FORK else 0
    if child == 0:
        given = dict(GIVEN)
        if FORK:  # what it destroys is its own
            own = f"{HERE}/{os.getpid()}"
            os.mkdir(own)
            given |= {"HERE": own, "FILE": f"{own}/file", "LINK": f"{own}/link", "NEW": f"{own}/new", "MODULE": f"{own}/canary_module.py"}
            open(given["FILE"], "w").write(CANARY)
            open(given["MODULE"], "w").close()
            os.symlink(given["FILE"], given["LINK"])
        try:
            exec(code, {**globals(), **given})
            what = "escaped"
        except BaseException as error:
            what = f"{type(error).__name__}: {error}"[:100]
        os.write(1, (json.dumps([name, what]) + "\\n").encode())
        if FORK:
            os._exit(0)
    else:
        os.waitpid(child, 0)
"""
DONE = "came to its end"
PR_SET_CHILD_SUBREAPER = 36  # <sys/prctl.h>


class Victim:
    """Its belongings, and whether they are as they were."""

    def __init__(self, here: Path):
        self.here = here
        self.signals = 0
        for number in (signal.SIGUSR1, signal.SIGIO, signal.SIGTERM):
            signal.signal(number, self._signalled)
        self.file, self.link, self.module = here / "file", here / "link", here / "canary_module.py"
        self.file.write_text(CANARY)
        self.link.symlink_to(self.file)
        self.module.write_text("")
        self.library = Path(shutil.copy(_ctypes.__file__, here / "library.so"))
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(("127.0.0.1", 0))
        self.path = str(here / "socket")
        self.local, self.abstract = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
        for each, name in ((self.local, self.path), (self.abstract, "\0" + self.path)):
            each.bind(name)
            each.listen()
        self.pair = socket.socketpair()
        self.memory = ctypes.create_string_buffer(CANARY.encode(), 16)
        self.fd = os.open(self.file, os.O_RDWR)
        os.set_inheritable(self.fd, True)
        os.set_inheritable(self.pair[1].fileno(), True)
        self.before = self.state()

    def _signalled(self, *_: Any) -> None:
        self.signals += 1

    def given(self) -> dict[str, Any]:
        """The names that attempts use."""
        return {
            "FILE": str(self.file),
            "LINK": str(self.link),
            "HERE": str(self.here),
            "NEW": str(self.here / "new"),
            "MODULE": str(self.module),
            "PORT": self.listener.getsockname()[1],
            "UDP": self.udp.getsockname()[1],
            "SOCKET": self.path,
            "VICTIM": os.getpid(),
            "ADDRESS": ctypes.addressof(self.memory),
            "FD": self.fd,
            "FD_SOCKET": self.pair[1].fileno(),
            "SECRET": SECRET,
            "CANARY": CANARY,
            "INSIDE": str(INSIDE),
            "ROOT": str(Path(__file__).parents[2]),
            "LIBRARY": str(self.library),
        }

    def state(self) -> dict[str, Any]:
        """All that no attempt may change."""
        self.pair[0].setblocking(False)
        heard = []
        for name, each in (("tcp", self.listener), ("local", self.local), ("abstract", self.abstract), ("udp", self.udp)):
            each.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                each.recv(1) if name == "udp" else each.accept()
                heard.append(name)
        with contextlib.suppress(BlockingIOError):
            heard.append(str(self.pair[0].recv(9)))
        status = self.file.stat()
        return {
            "files": sorted(path.name for path in self.here.iterdir()),
            "file": [self.file.read_text(), status.st_mode, status.st_mtime, status.st_nlink],
            "heard": heard,
            "memory": self.memory.raw.hex(),
            "signals": self.signals,
            "priority": os.getpriority(os.PRIO_PROCESS, 0),
            "children": left_over(),
            "environment": os.environ[SECRET],
        }


def left_over() -> list[str]:
    """Processes that still run below this one, given a moment to die that they were killed in."""
    deadline = time.monotonic() + 60
    while True:
        running = [child for child in psutil.Process().children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE]
        if not running or time.monotonic() > deadline:
            return [str(child) for child in running]
        time.sleep(0.02)


def uncaged(program: str) -> str:
    """What a program prints that runs with all of the victim's."""
    command = [sys.executable, "-"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, close_fds=False, start_new_session=True
    )
    out, _ = process.communicate(program.encode(), timeout=120)
    return out.decode()


def batch(victim: Victim, cage: str, attempts: dict[str, str]) -> list[list[str]]:
    """Each attempt of a batch with what became of it."""
    given = victim.given()
    setting = f"ATTEMPTS = {attempts!r}\nFORK = {cage == 'none'}\nGIVEN = {given!r}\nglobals().update(GIVEN)\n"
    program = PRELUDE + setting + EACH
    if cage == "none":
        printed = uncaged(program)
    else:
        outcome = run_python(program, timeout_s=120, mechanism=cage)  # type: ignore[arg-type]
        printed = outcome.stdout
        if not outcome.passed:
            printed += json.dumps(["the batch", f"{outcome.status}: {outcome.stderr[-300:]}"])
    results = [json.loads(line) for line in printed.splitlines() if line.startswith('["')]  # not what the attempts themselves print
    missing = set(attempts) - {name for name, _ in results}
    return results + [[name, "was not made"] for name in sorted(missing)]


def alone(cage: str, code: str, timeout_s: float = 0.8) -> str:
    """What became of an attempt that has a cage of its own."""
    started = time.perf_counter()
    outcome: Outcome = run_python(PRELUDE + code, timeout_s=timeout_s, ending=DONE, mechanism=cage)  # type: ignore[arg-type]
    if outcome.passed or DONE in outcome.stdout:
        return "escaped"
    size = max(len(outcome.stdout), len(outcome.stderr))
    took = time.perf_counter() - started
    return f"escaped: {size} characters of output" if size > 65_536 else f"escaped: {took} s" if took > 120 else outcome.status


def main() -> None:
    cage = sys.argv[1]
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # whoever is left over becomes a child
    with tempfile.TemporaryDirectory(prefix="victim-") as here, ThreadPoolExecutor(2) as pool:
        victim = Victim(Path(here))

        def tell(of: str | None, name: str, what: Any) -> None:
            print(json.dumps([of, name, what]), flush=True)

        for of, attempts in BATCHES.items():
            for name, what in batch(victim, cage, attempts):
                tell(of, name, what)
        if cage != "none":
            for name, what in zip(ALONE, pool.map(lambda code: alone(cage, code), ALONE.values()), strict=True):
                tell("alone", name, what)
            tell("alone", "an honest program", alone(cage, "print(1)", timeout_s=60))
            tell(None, "most memory, KiB", resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
        after = victim.state()
        tell(None, "changed", {key: [victim.before[key], after[key]] for key in after if after[key] != victim.before[key]})


if __name__ == "__main__":
    main()
