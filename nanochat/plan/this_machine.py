"""The GPUs of this machine, by what nvidia-smi says of them: quick, and without torch."""

import subprocess
from dataclasses import replace

from nanochat.common.console import warn
from nanochat.plan.hardware import GPUS, Gpu, gpu_named

MIB_PER_GIB = 1024
QUERY = ("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits")
DRIVER = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")


def this_machine() -> tuple[int, Gpu] | None:
    """How many GPUs of what kind there are; None where there is none.

    Of several kinds the one with the least memory, then the slowest, stands for all, with a warning: every rank waits for it.
    """
    try:
        finished = subprocess.run(QUERY, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = [gpu for gpu in map(_gpu_of, finished.stdout.splitlines()) if gpu] if finished.returncode == 0 else []
    if not found:
        return None
    least = min(found, key=lambda gpu: (gpu.memory_gib, gpu.peak_bf16_flops))
    names = [gpu.name for gpu in found]
    if len(set(names)) > 1:
        kinds = ", ".join(f"{names.count(name)} × {name}" for name in sorted(set(names)))
        warn(f"GPUs of several kinds ({kinds}): planned as if all were {least.name}; training wants one kind, see CUDA_VISIBLE_DEVICES")
    return len(found), least


def driver_version() -> str:
    """The version of the GPUs' driver; empty where there is none."""
    try:
        finished = subprocess.run(DRIVER, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return finished.stdout.split("\n")[0].strip() if finished.returncode == 0 else ""


def _gpu_of(line: str) -> Gpu | None:
    """A line of the answer, `NAME, MIB`; a kind that is not in the table is taken to be as fast as the one nearest in memory."""
    name, _, mib = line.rpartition(",")
    name = name.strip()
    try:
        memory_gib = float(mib) / MIB_PER_GIB
    except ValueError:
        return None
    known = gpu_named(name)
    if known:
        return replace(known, memory_gib=min(known.memory_gib, memory_gib))
    like = min(GPUS, key=lambda gpu: (abs(gpu.memory_gib - memory_gib), gpu.peak_bf16_flops))
    return replace(like, name=name, memory_gib=memory_gib, usd_per_hour=0.0, device_names=())
