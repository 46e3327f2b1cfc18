"""What runs inside the cage: gives up every right, then runs the program on standard input. Started by `run.py`, never imported.

Only the standard library and, where there is no file system of its own, py_landlock are at hand here.
"""

import ctypes
import json
import os
import resource
import sys
import types

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2


class Filter(ctypes.Structure):
    """struct sock_fprog of <linux/filter.h>."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def limit(cpu_s: int, memory_bytes: int, output_bytes: int) -> None:
    """Limits that the kernel enforces: processor time, address space, what a file may hold, no core file."""
    for what, most in (
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, output_bytes),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 64),
    ):
        resource.setrlimit(what, (most, most))


def see_only(readable: list[str], packages: str) -> None:
    """By Landlock: read what is listed and nothing else, write nothing."""
    sys.path.append(packages)
    from py_landlock import AccessFs, Landlock

    rules = Landlock(strict=False).allow_read(*(path for path in readable if os.path.isdir(path)))
    rules.add_path_rule(*(path for path in readable if not os.path.isdir(path)), access=AccessFs.READ_FILE)
    rules.apply()
    sys.path.remove(packages)


def forbid(instructions: bytes) -> None:
    """By seccomp: the system calls of the filter fail from now on, for good."""
    libc = ctypes.CDLL(None, use_errno=True)
    filter = Filter(len(instructions) // 8, instructions)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(filter), 0, 0):
        raise OSError(ctypes.get_errno(), "the system-call filter was refused")


def main() -> None:
    """Read the orders and the program, cage this process, run."""
    orders = json.loads(sys.stdin.buffer.readline())
    program = sys.stdin.buffer.read().decode()
    sys.stdin.close()
    limit(orders["cpu_s"], orders["memory_bytes"], orders["output_bytes"])
    if orders["readable"]:
        see_only(orders["readable"], orders["packages"])
    if orders["filter"]:
        forbid(bytes.fromhex(orders["filter"]))
    for name in ("ctypes", "py_landlock", "resource"):
        sys.modules.pop(name, None)
    module = sys.modules["program"] = types.ModuleType("program")  # not __main__: what a program does only when started is left out
    code = compile(program, "<program>", "exec")
    del program, orders
    exec(code, module.__dict__)


if __name__ == "__main__":
    main()
