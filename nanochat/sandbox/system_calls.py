"""The system calls that a caged program may make: those that a Python program which computes needs, and no other.

What is not named here, calls that are newer than this list among them, fails with EPERM; a call by another architecture's numbers kills.
"""

import errno
import fcntl
import functools
import os
import tempfile
import termios

ALLOWED = (
    # reading; what may be opened is for the file system or Landlock to say
    "read readv pread64 preadv lseek _llseek close close_range dup dup2 dup3 fstat fstat64 stat stat64 lstat lstat64 newfstatat fstatat64 "
    "statx access faccessat faccessat2 readlink readlinkat getdents getdents64 getcwd "
    # its two outputs, and a pipe to itself
    "write writev pwrite64 pipe pipe2 select _newselect pselect6 poll ppoll "
    # memory
    "brk mmap mmap2 munmap mprotect mremap membarrier "
    # time
    "clock_gettime clock_gettime64 clock_getres clock_getres_time64 clock_nanosleep clock_nanosleep_time64 nanosleep gettimeofday time "
    "times getitimer setitimer alarm pause "
    # signals that it gives itself
    "rt_sigaction rt_sigprocmask rt_sigreturn sigreturn rt_sigpending rt_sigsuspend rt_sigtimedwait sigaltstack restart_syscall "
    # itself
    "getpid getppid gettid getuid geteuid getgid getegid getresuid getresgid getgroups getpgrp uname sysinfo getrusage sched_getaffinity "
    "sched_yield getcpu getrandom futex futex_time64 exit exit_group"
)
NO_WRITING = os.O_ACCMODE | os.O_CREAT | os.O_TRUNC
IOCTLS = ("TCGETS", "TIOCGWINSZ", "FIONREAD", "FIONBIO", "FIOCLEX", "FIONCLEX")
FCNTLS = ("F_DUPFD", "F_DUPFD_CLOEXEC", "F_GETFD", "F_SETFD", "F_GETFL")
"""By name, as other systems lack some. Not F_SETOWN, F_SETSIG and O_ASYNC, by which a pipe signals any process of the same user."""
MADV_HWPOISON = 100  # <asm-generic/mman-common.h>; from here on root may spoil pages of the machine


@functools.cache
def bpf() -> bytes:
    """The filter as BPF instructions. Raises ImportError, OSError or RuntimeError where libseccomp is missing."""
    from pyseccomp import ALLOW, EQ, ERRNO, LT, MASKED_EQ, Arg, SyscallFilter

    rules = SyscallFilter(ERRNO(errno.EPERM))
    allowed: list[tuple[str, tuple[Arg, ...]]] = [(call, ()) for call in ALLOWED.split()]
    allowed += [(call, (Arg(at, MASKED_EQ, NO_WRITING, 0),)) for call, at in (("open", 1), ("openat", 2))]
    allowed += [("ioctl", (Arg(1, EQ, getattr(termios, command)),)) for command in IOCTLS]
    allowed += [(call, (Arg(1, EQ, getattr(fcntl, command)),)) for call in ("fcntl", "fcntl64") for command in FCNTLS]
    allowed += [("madvise", (Arg(2, LT, MADV_HWPOISON),))]
    allowed += [("prlimit64", (Arg(0, EQ, 0), Arg(2, EQ, 0)))]  # its own limits, read
    for call, arguments in allowed:
        try:
            rules.add_rule(ALLOW, call, *arguments)
        except (OSError, ValueError):  # a call that this architecture or libseccomp does not have
            continue
    with tempfile.TemporaryFile() as file:
        rules.export_bpf(file)
        file.seek(0)
        return file.read()
