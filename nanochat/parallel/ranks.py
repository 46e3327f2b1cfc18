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
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from nanochat.common.errors import Stopped, UserError
from nanochat.common.processes import keep_freed_memory

T = TypeVar("T")

PATIENCE = timedelta(hours=2)  # the other ranks wait while the first one checks all shards or writes a large model


@dataclass(frozen=True)
class Ranks:
    """This process among those that torchrun started; alone when it started none."""

    rank: int
    """Number of this process."""
    world_size: int
    """How many there are."""
    node_ranks: int
    """How many there are on each node: these share the weights, and nodes replicate them."""
    device: torch.device
    """The device of this process."""

    @property
    def is_first(self) -> bool:
        """Whether this process prints and writes for all."""
        return self.rank == 0

    def mesh(self) -> DeviceMesh:
        """The ranks in order: ("shard",) on one node, ("replicate", "shard") on several, shards within a node."""
        nodes = self.world_size // self.node_ranks
        if nodes == 1:
            return init_device_mesh(self.device.type, (self.node_ranks,), mesh_dim_names=("shard",))
        return init_device_mesh(self.device.type, (nodes, self.node_ranks), mesh_dim_names=("replicate", "shard"))

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over the ranks, in place."""
        dist.all_reduce(tensor)
        return tensor

    def broadcast_(self, tensor: Tensor) -> Tensor:
        """Give a tensor the first rank's values, in place."""
        dist.broadcast(tensor, src=0)
        return tensor

    def least(self, value: float) -> float:
        """The smallest of the ranks' values."""
        tensor = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MIN)
        return tensor.item()

    def gather(self, value: T) -> list[T]:
        """The value of every rank."""
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Wait for every rank."""
        dist.barrier()

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make` returns on the first rank, on every rank; a UserError or OSError that it raises is raised on all of them."""
        answer: list[Any] = [None, None]
        if self.is_first:
            try:
                answer[0] = make()
            except (UserError, OSError) as error:
                answer[1] = error
        dist.broadcast_object_list(answer, src=0)
        if answer[1] is not None:
            raise answer[1]
        return answer[0]


def pick_device() -> torch.device:
    """The GPU of this process, or the CPU. Raises UserError when a node has more ranks than GPUs."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    wanted, found = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if wanted > found:
        raise UserError(f"{wanted} ranks on this node, but {found} GPUs: lower NPROC_PER_NODE (--nproc_per_node)")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    torch.set_float32_matmul_precision("highest")  # some images set a variable by which float32 would be multiplied with ten bits
    return device


def _node_ranks(world_size: int) -> int:
    """Ranks of every node. Raises UserError where nodes differ, or are not as many as NNODES says."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    sizes: list[Any] = [None] * world_size
    dist.all_gather_object(sizes, local)
    if len(set(sizes)) > 1:
        raise UserError(f"nodes with {min(sizes)} and with {max(sizes)} ranks: give NPROC_PER_NODE the same value on every node")
    nodes, said = world_size // local, os.environ.get("NNODES", "")
    if said and said != str(nodes):
        raise UserError(
            f"NNODES={said}, but torchrun started {world_size} ranks on {nodes} node{'s' if nodes > 1 else ''}: "
            "give every node the same NNODES, or unset it"
        )
    return local


@contextlib.contextmanager
def ranks() -> Iterator[Ranks]:
    """Join the job that torchrun describes in the environment, or be one of one, and leave it at the end.

    Raises UserError when a node has more ranks than GPUs, or nodes do not match.
    """
    device = pick_device()
    if device.type == "cpu":
        keep_freed_memory()
    backend, device_id = ("cpu:gloo,cuda:nccl", device) if device.type == "cuda" else ("gloo", None)
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group(backend, device_id=device_id, timeout=PATIENCE)
    else:
        dist.init_process_group(backend, device_id=device_id, timeout=PATIENCE, store=dist.HashStore(), rank=0, world_size=1)
    world_size = dist.get_world_size()
    try:
        yield Ranks(dist.get_rank(), world_size, _node_ranks(world_size), device)
    except Stopped:  # all ranks alike
        _leave_together()
        raise
    except BaseException:
        if world_size == 1:
            dist.destroy_process_group()
        raise  # among several ranks this one may be alone: the command's end leaves without asking the others
    _leave_together()


def _leave_together() -> None:
    dist.barrier()  # a rank that leaves early can break what the others still have under way
    dist.destroy_process_group()
