"""One rank's measurement: a product on its device, then what passes between the ranks. Started by speed.py, one process a rank.

What is known is written to a file after each part: of a rank that hangs, this tells in what. The first time when all ranks have
imported torch: from then on their time counts.
"""

import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nanochat.common.cli import leave_alone
from nanochat.common.processes import DIES_WITH, die_with_starter
from nanochat.parallel.ranks import pick_device
from nanochat.preflight.speed import PARTS

PRODUCT_GPU, PRODUCT_CPU = 8192, 512  # rows and columns
PRODUCT_GPU_S, PRODUCT_CPU_S = 1.0, 0.2
REDUCED_BYTES_GPU, REDUCED_BYTES_CPU = 2**28, 2**22
PASSED_BYTES_GPU, PASSED_BYTES_CPU = 2**26, 2**20
WARM_UP, TIMED = 2, 5
DEVICE, PRODUCT, MEETING, REDUCING, PASSING = PARTS[1:]
CLOCKS = "clocks_event_reasons.active,clocks.sm,temperature.gpu"


def wait_for(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def product(device: torch.device) -> dict[str, Any]:
    """FLOP/s of a product, bf16 on a GPU and float32 on a CPU, and on a GPU what its driver says of its clock meanwhile."""
    on_gpu = device.type == "cuda"
    size, seconds = (PRODUCT_GPU, PRODUCT_GPU_S) if on_gpu else (PRODUCT_CPU, PRODUCT_CPU_S)
    left = torch.randn(size, size, device=device, dtype=torch.bfloat16 if on_gpu else torch.float32)
    right, result = torch.randn_like(left), torch.empty_like(left)
    for _ in range(WARM_UP):
        torch.mm(left, right, out=result)
    wait_for(device)
    asked = _ask_clock(device) if on_gpu else None
    done, began = 0, time.perf_counter()
    while (taken := time.perf_counter() - began) < seconds or (asked and asked.poll() is None and taken < 5 * seconds):
        for _ in range(10 if on_gpu else 1):
            torch.mm(left, right, out=result)
            done += 1
        wait_for(device)
    return {"flops": 2 * size**3 * done / taken, "finite": bool(result.isfinite().all()), **_clock_of(asked)}


def _ask_clock(device: torch.device) -> "subprocess.Popen[str] | None":
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", "")
    command = ["nvidia-smi", "-i", f"GPU-{uuid}", f"--query-gpu={CLOCKS}", "--format=csv,noheader,nounits"]
    try:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    except OSError:
        return None


def _clock_of(asked: "subprocess.Popen[str] | None") -> dict[str, Any]:
    if asked is None or asked.poll() != 0 or asked.stdout is None:  # slices and older drivers do not tell
        return {}
    cells = [cell.strip() for cell in asked.stdout.read().split(",")]
    return dict(zip(("slowdown", "clock_mhz", "degrees"), cells, strict=False))


def all_reduce(device: torch.device, ranks: int) -> float:
    """Bytes a second through a rank's link in an all-reduce: the 2·(n - 1)/n of the tensor that a ring passes on."""
    tensor = torch.ones((REDUCED_BYTES_GPU if device.type == "cuda" else REDUCED_BYTES_CPU) // 4, device=device)

    def reduce() -> None:
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)

    return 2 * (ranks - 1) / ranks * tensor.numel() * 4 / _median_s(reduce, device)


def to_next(device: torch.device, rank: int, ranks: int) -> float | None:
    """Bytes a second that this rank and the next one give each other at once; None for a rank that has none after it.

    A ring of pairs, in rounds in which each rank speaks to one other.
    """
    size = PASSED_BYTES_GPU if device.type == "cuda" else PASSED_BYTES_CPU
    given, taken = torch.ones(size, device=device, dtype=torch.uint8), torch.empty(size, device=device, dtype=torch.uint8)
    found = None
    for pairs in rounds(ranks):
        other = next((pair[1 - pair.index(rank)] for pair in pairs if rank in pair), None)
        dist.barrier()
        if other is None:
            continue
        seconds = _median_s(lambda other=other: _exchange(given, taken, other), device)  # type: ignore[misc]
        if (rank, other) in pairs:
            found = size / seconds
    return found


def rounds(ranks: int) -> list[list[tuple[int, int]]]:
    """The pairs (i, i + 1) of a ring, in two rounds, or three where the number is odd, that have each rank once."""
    ring = [(i, (i + 1) % ranks) for i in range(ranks if ranks > 2 else ranks - 1)]
    last = ring[-1:] if ranks % 2 and ranks > 2 else []
    chain = ring[: len(ring) - len(last)]
    return [each for each in (chain[::2], chain[1::2], last) if each]


def _exchange(given: Tensor, taken: Tensor, other: int) -> None:
    for work in dist.batch_isend_irecv([dist.P2POp(dist.isend, given, other), dist.P2POp(dist.irecv, taken, other)]):
        work.wait()


def _median_s(work: Callable[[], None], device: torch.device) -> float:
    taken = []
    for _ in range(WARM_UP + TIMED):
        wait_for(device)
        began = time.perf_counter()
        work()
        wait_for(device)
        taken.append(time.perf_counter() - began)
    return sorted(taken[WARM_UP:])[TIMED // 2]


def main(path: Path, store_path: str, import_s: float, patience_s: float, has_gpu: bool) -> None:
    """All of it, into `path`; the ranks meet in the file `store_path`, or where it is empty at the launcher's store.

    import_s: how long a rank waits for others that import torch; patience_s: for those that measure.

    Raises what torch does where the driver tells of a GPU (`has_gpu`) that torch cannot use.
    """
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    known: dict[str, Any] = {"rank": rank, "local_rank": int(os.environ["LOCAL_RANK"]), "node": int(os.environ["GROUP_RANK"])}
    known |= {"torch": torch.__version__, "at": DEVICE}

    def write(**more: Any) -> None:
        known.update(more)
        aside = path.with_suffix(".tmp")
        aside.write_text(json.dumps(known), encoding="utf-8")  # where its directory is gone, so is who would read it
        aside.replace(path)

    if ranks > 1:
        patience = timedelta(seconds=patience_s)
        store: dist.Store = dist.FileStore(store_path, ranks) if store_path else _launchers_store(patience)
        store.set(f"imported{rank}", "")
        store.wait([f"imported{each}" for each in range(ranks)], timedelta(seconds=import_s))
    write()
    if has_gpu:
        torch.cuda.init()  # says why where it cannot; is_available would not
    device = pick_device()
    on_gpu = device.type == "cuda"
    write(device=torch.cuda.get_device_name(device) if on_gpu else "CPU", on_gpu=on_gpu, at=PRODUCT)
    write(**product(device), at=MEETING)
    if ranks > 1:
        backend, device_id = ("nccl", device) if on_gpu else ("gloo", None)
        dist.init_process_group(backend, store=store, rank=rank, world_size=ranks, timeout=patience, device_id=device_id)
        dist.barrier()
        write(at=REDUCING)
        write(link_bytes_per_s=all_reduce(device, ranks), at=PASSING)
        write(next_bytes_per_s=to_next(device, rank, ranks))
        dist.barrier()
    write(at="")
    print("{}")
    leave_alone("", 0)


def _launchers_store(patience: timedelta) -> dist.Store:
    server = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=patience)
    return dist.PrefixStore("preflight/measure", server)


if __name__ == "__main__":
    die_with_starter()
    if os.environ.get(DIES_WITH) != str(os.getppid()):
        leave_alone("", 1)  # the starter has died while torch was imported
    wanted = json.loads(sys.argv[1])
    try:
        main(Path(wanted["path"]), wanted["store"], wanted["import_s"], wanted["patience_s"], wanted["has_gpu"])
    except Exception:
        leave_alone(traceback.format_exc(), 1)  # the usual end would wait for a group that may be broken
