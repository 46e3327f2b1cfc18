"""A job of several processes on the CPU (gloo), for tests of what ranks do together."""

import multiprocessing
import os
import pickle
import sys
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from nanochat.parallel.ranks import Ranks

TIMEOUT_S = 60

if str(ROOT := Path(__file__).parents[1]) not in sys.path:
    sys.path.append(str(ROOT))  # the processes begin with this path, and find the tests by it

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["torch._dynamo", "torch.distributed.fsdp", "torch.distributed.checkpoint"])


def _rank(rank: int, world_size: int, store: str, answer: Connection, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ["RANK"] = str(rank)
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", store=dist.FileStore(store, world_size), rank=rank, world_size=world_size)
        # Bytes: a tensor sent as it is lies in memory that may end with this process before the other one has it.
        answer.send_bytes(pickle.dumps((True, work(Ranks(rank, world_size, world_size, torch.device("cpu")), *args))))
        dist.destroy_process_group()
    except BaseException:
        answer.send_bytes(pickle.dumps((False, traceback.format_exc())))
        raise


def start_ranks(world_size: int, work: Callable[..., Any], *args: Any) -> list[tuple[ForkServerProcess, Connection]]:
    """Start `work(ranks, *args)` in that many processes; each with the connection that its answer comes through."""
    store = str(Path(tempfile.mkdtemp()) / "store")
    started = []
    for rank in range(world_size):
        answer, theirs = _context.Pipe(duplex=False)
        process = _context.Process(target=_rank, args=(rank, world_size, store, theirs, work, args), daemon=True)
        process.start()
        theirs.close()
        started.append((process, answer))
    return started


def run_ranks(world_size: int, work: Callable[..., Any], *args: Any) -> list[Any]:
    """What `work(ranks, *args)` returns on each rank of a job. Fails when a rank does, or is left waiting."""
    started = start_ranks(world_size, work, *args)
    try:
        answers = []
        for rank, (_, answer) in enumerate(started):
            assert answer.poll(TIMEOUT_S), f"rank {rank} gave no answer"
            good, value = pickle.loads(answer.recv_bytes())
            assert good, f"rank {rank} failed:\n{value}"
            answers.append(value)
        for rank, (process, _) in enumerate(started):
            process.join(TIMEOUT_S)
            assert process.exitcode == 0, f"rank {rank} ended with {process.exitcode}"
        return answers
    finally:
        for process, _ in started:
            process.kill()
