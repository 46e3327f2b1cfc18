"""How fast the ranks of a node bring pieces together: run by torchrun, one process a GPU; the first prints one JSON object."""

import json
import statistics
import time

import torch
import torch.distributed as dist

from nanochat.parallel.ranks import ranks

BYTES_GPU, BYTES_CPU = 2**28, 2**22  # that every rank has in the end
WARM_UP, TIMED = 3, 7


def main() -> None:
    """An all-gather, as sharding makes them; bytes that reach one rank in a second."""
    with ranks() as r:
        on_gpu = r.device.type == "cuda"
        whole = torch.empty((BYTES_GPU if on_gpu else BYTES_CPU) // r.world_size * r.world_size, dtype=torch.uint8, device=r.device)
        piece = torch.ones(whole.numel() // r.world_size, dtype=torch.uint8, device=r.device)
        taken = []
        for _ in range(WARM_UP + TIMED):
            r.barrier()
            began = time.perf_counter()
            dist.all_gather_into_tensor(whole, piece)
            if on_gpu:
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - began)
        slowest = -r.least(-statistics.median(taken[WARM_UP:]))
        if r.is_first:
            print(json.dumps({"ranks": r.world_size, "bytes_per_s": (whole.numel() - piece.numel()) / slowest}), flush=True)


if __name__ == "__main__":
    main()
