"""Commands in processes that have imported torch already: a start costs a fork, and not three seconds of a core.

A server, one for each worker of the tests, has the heavy imports of other people's packages and nothing of this project. It forks for
every command; what is forked takes over directory, environment and outputs of the command, and runs its module as `python -m` does.
"""

import atexit
import contextlib
import gc
import json
import os
import runpy
import signal
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

HEAVY = ("torch", "torch._dynamo", "torch.distributed.fsdp", "torch.distributed.checkpoint")
AT_START = ("PYTHON", "LC_", "LANG", "LD_", "OMP_", "MKL_", "TORCH", "KMP_", "GOMP_", "CUDA_")
"""Beginnings of variables that are read when Python or torch starts: where they are other ones, so is the process."""

_server: tuple[socket.socket, dict[str, str]] | None = None
_lock = threading.Lock()


def fits(environment: dict[str, str]) -> bool:
    """Whether a warm process can stand for one with that environment."""
    _, own = _connection()
    return all(own.get(name) == environment.get(name) for name in own.keys() | environment.keys() if name.startswith(AT_START))


def run(module: str, arguments: list[str], cwd: Path, environment: dict[str, str], timeout: float) -> subprocess.CompletedProcess[str]:
    """What subprocess.run would give of `python -m module arguments`. Raises TimeoutExpired, the command killed, when it takes longer."""
    command = [sys.executable, "-m", module, *arguments]
    (out, out_end), (errors, errors_end), (status, status_end) = os.pipe(), os.pipe(), os.pipe()
    request = json.dumps({"module": module, "arguments": arguments, "cwd": str(cwd), "environment": environment}).encode()
    with _lock:
        connection, _ = _connection()
        socket.send_fds(connection, [struct.pack("<I", len(request))], [out_end, errors_end, status_end])
        connection.sendall(request)
    for end in (out_end, errors_end, status_end):
        os.close(end)
    said: dict[str, str] = {}

    def read(name: str, descriptor: int) -> None:
        with open(descriptor, encoding="utf-8", errors="backslashreplace") as file:
            said[name] = file.read()

    readers = [threading.Thread(target=read, args=each, daemon=True) for each in (("out", out), ("errors", errors))]
    for reader in readers:
        reader.start()
    with open(status, "rb", buffering=0) as ends:
        (pid,) = struct.unpack("<i", ends.read(4))
        timer = threading.Timer(timeout, os.kill, (pid, signal.SIGKILL))
        timer.start()
        (code,) = struct.unpack("<i", ends.read(4))
        late = not timer.is_alive()
        timer.cancel()
    for reader in readers:
        reader.join()
    if late:
        raise subprocess.TimeoutExpired(command, timeout, said["out"], said["errors"])
    return subprocess.CompletedProcess(command, code, said["out"], said["errors"])


def _connection() -> tuple[socket.socket, dict[str, str]]:
    global _server
    if _server is None:
        ours, theirs = socket.socketpair()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
        command = [sys.executable, "-m", "tests.warm", str(theirs.fileno())]
        pipe = subprocess.PIPE  # as a command's outputs will be
        subprocess.Popen(command, cwd=environment["PYTHONPATH"], env=environment, pass_fds=[theirs.fileno()], stdout=pipe, stderr=pipe)
        theirs.close()
        _server = ours, environment
    return _server


def _serve(connection: socket.socket) -> dict[str, object]:
    """Fork for each request; returns, in what was forked, the request."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the keepers
    while True:
        head, ends, _, _ = socket.recv_fds(connection, 4, 3)
        if not head:
            os._exit(0)  # the tests are over
        (length,) = struct.unpack("<I", head)
        request = b""
        while len(request) < length:
            request += connection.recv(length - len(request))
        if not os.fork():
            break
        for end in ends:
            os.close(end)
    # The keeper, which waits for the command and says how it ended.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    connection.close()
    out, errors, status = ends
    pid = os.fork()
    if pid:
        os.close(out)
        os.close(errors)
        os.write(status, struct.pack("<i", pid))
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with contextlib.suppress(BrokenPipeError):
            os.write(status, struct.pack("<i", code))
        os._exit(0)
    os.close(status)
    os.dup2(out, 1)
    os.dup2(errors, 2)
    os.close(out)
    os.close(errors)
    wanted: dict[str, object] = json.loads(request)
    return wanted


if __name__ == "__main__":
    import importlib

    for name in HEAVY:
        importlib.import_module(name)
    gc.freeze()  # what is shared stays shared
    wanted = _serve(socket.socket(fileno=int(sys.argv[1])))
    os.chdir(str(wanted["cwd"]))
    os.environ.clear()
    os.environ.update(wanted["environment"])  # type: ignore[call-overload]
    sys.path[0] = os.getcwd()
    sys.argv = [str(wanted["module"]), *wanted["arguments"]]  # type: ignore[misc]
    status: object = None
    try:
        runpy.run_module(str(wanted["module"]), run_name="__main__", alter_sys=True)
    except SystemExit as end:
        status = end.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    # As Python ends, but that nothing is freed: of all that was imported that alone takes most of a second.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    if not isinstance(status, int | None):
        print(status, file=sys.stderr)
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status or 0)
