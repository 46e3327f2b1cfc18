"""The processes of a job: who this one is, and the few things that all of them do together."""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from nanochat.common.errors import UserError

T = TypeVar("T")

PATIENCE = timedelta(hours=2)  # the other ranks wait while the first one checks all shards or writes a large checkpoint


@dataclass(frozen=True)
class Ranks:
    """This process among those that torchrun started; alone when it started none."""

    rank: int
    """Number of this process."""
    world_size: int
    """How many there are."""
    device: torch.device
    """The device of this process."""

    @property
    def is_first(self) -> bool:
        """Whether this process prints and writes for all."""
        return self.rank == 0

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over the ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def sum_gradients(self, parameters: list[torch.nn.Parameter]) -> None:
        """Sum the gradients over the ranks, in place."""
        if self.world_size > 1:
            for work in [dist.all_reduce(p.grad, async_op=True) for p in parameters if p.grad is not None]:
                work.wait()

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.world_size > 1:
            dist.barrier()

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make` returns on the first rank, on every rank; a UserError or OSError that it raises is raised on all of them."""
        answer: list[Any] = [None, None]
        if self.is_first:
            try:
                answer[0] = make()
            except (UserError, OSError) as error:
                answer[1] = error
        if self.world_size > 1:
            dist.broadcast_object_list(answer, src=0)
        if answer[1] is not None:
            raise answer[1]
        return answer[0]


@contextlib.contextmanager
def ranks() -> Iterator[Ranks]:
    """Join the job that torchrun describes in the environment, and leave it at the end.

    Raises UserError when a node has more ranks than GPUs.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if torch.cuda.is_available():
        wanted, found = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
        if wanted > found:
            raise UserError(f"{wanted} ranks on this node, but {found} GPUs: lower NPROC_PER_NODE (--nproc_per_node)")
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    if world_size == 1:
        yield Ranks(0, 1, device)
        return
    backend, device_id = ("nccl", device) if device.type == "cuda" else ("gloo", None)
    dist.init_process_group(backend, device_id=device_id, timeout=PATIENCE)
    try:
        yield Ranks(dist.get_rank(), world_size, device)
    finally:
        dist.destroy_process_group()
