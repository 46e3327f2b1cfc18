"""Base training in which one rank may have only so much address space: `python -m tests.train.limited RANK MIB FLAGS…`.

MIB 0 sets no limit. Prints the most that the rank had. What it frees goes back to the system at once, and no thread has an arena of
its own, so that its address space follows what the step needs.
"""

import ctypes
import os
import re
import resource
import runpy
import sys
from pathlib import Path

from nanochat.common import processes

M_ARENA_MAX = -8  # <malloc.h>

if __name__ == "__main__":
    arguments = [argument for argument in sys.argv[1:] if argument != "--"]
    rank, mib = int(arguments[0]), int(arguments[1])
    sys.argv = ["base_train", *arguments[2:]]
    if rank == int(os.environ.get("RANK", "0")):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_ARENA_MAX, 1)
        libc.mallopt(processes.M_MMAP_THRESHOLD, 2**20)
        processes.keep_freed_memory = lambda: None
        if mib:
            resource.setrlimit(resource.RLIMIT_AS, (mib << 20, mib << 20))
        try:
            runpy.run_module("scripts.base_train", run_name="__main__")
        finally:
            found = re.search(r"VmPeak:\s+(\d+)", Path("/proc/self/status").read_text())
            assert found
            print(f"most address space: {int(found[1]) // 1024} MiB", flush=True)
    else:
        runpy.run_module("scripts.base_train", run_name="__main__")
