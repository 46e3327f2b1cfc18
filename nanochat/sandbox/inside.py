"""What runs inside the cage: gives up every right, then runs the program on standard input. Started by `run.py`, never imported.

Only the standard library and, where there is no file system of its own, py_landlock are at hand here.
"""

import ctypes
import json
import os
import resource
import signal
import sys
import types

PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS, PR_CAPBSET_DROP, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 1, 38, 24, 22, 2
CAPABILITIES = 64  # more than any kernel knows
CAPABILITY_VERSION_3 = 0x20080522  # <linux/capability.h>


class Filter(ctypes.Structure):
    """struct sock_fprog of <linux/filter.h>."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def die_with(parent: int) -> None:
    """By the kernel: killed when the starting process is. parent: its number, 0 where another stands between."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if parent and os.getppid() != parent:  # it was killed before that
        sys.exit(1)


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


def give_up_capabilities() -> None:
    """Root is a plain user from now on; whoever is none gives up what it has not."""
    libc = ctypes.CDLL(None, use_errno=True)
    for number in range(CAPABILITIES):
        libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0)  # refused where nothing could be won back by it
    if libc.capset((ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)()):
        raise OSError(ctypes.get_errno(), "the capabilities could not be given up")


def forbid(instructions: bytes) -> None:
    """By seccomp: no system call but those that the filter lets through, from now on and for good."""
    libc = ctypes.CDLL(None, use_errno=True)
    filter = Filter(len(instructions) // 8, instructions)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(filter), 0, 0):
        raise OSError(ctypes.get_errno(), "the system-call filter was refused")


def run(program: str) -> types.ModuleType:
    """The module that the program makes; it is not __main__: what it does only when started is left out."""
    module = sys.modules["program"] = types.ModuleType("program")
    exec(compile(program, "<program>", "exec"), module.__dict__)
    return module


def say(ending: str, after: types.ModuleType) -> None:
    """Print the ending, past whatever the program has made of sys.stdout."""
    if sys.stdout is not sys.__stdout__:
        sys.stdout.flush()
    print(ending, end="", file=sys.__stdout__, flush=True)


def main() -> None:
    """Read the orders and the program, cage this process, say that the program begins, run it, say the ending."""
    orders = json.loads(sys.stdin.buffer.readline())
    die_with(orders["parent"])
    program = sys.stdin.buffer.read().decode()
    os.close(sys.stdin.fileno())
    limit(orders["cpu_s"], orders["memory_bytes"], orders["output_bytes"])
    if orders["readable"]:
        see_only(orders["readable"], orders["packages"])
    if orders["filter"]:
        give_up_capabilities()
        forbid(bytes.fromhex(orders["filter"]))
    for name in ("ctypes", "py_landlock", "resource"):
        sys.modules.pop(name, None)
    os.write(orders["begun"], b"!")
    os.close(orders["begun"])
    say(orders.pop("ending"), run(program))  # as an argument it is in no frame's f_locals while the program runs


if __name__ == "__main__":
    main()
