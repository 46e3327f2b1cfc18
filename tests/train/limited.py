"""Base training in which one rank may have only so much address space: `python -m tests.train.limited RANK MIB FLAGS…`.

MIB 0 sets no limit. Prints the most that the rank had.
"""

import os
import re
import resource
import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    arguments = [argument for argument in sys.argv[1:] if argument != "--"]
    rank, mib = int(arguments[0]), int(arguments[1])
    sys.argv = ["base_train", *arguments[2:]]
    if rank == int(os.environ.get("RANK", "0")):
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
