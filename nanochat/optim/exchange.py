"""The collectives that Muon needs, over the ranks that hold its parameters."""

from collections.abc import Callable, Iterable

import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard

Wait = Callable[[], object]

all_gather_single = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # the newer name, where there is one


def mesh_of(parameters: Iterable[Tensor]) -> DeviceMesh | None:
    """The mesh that the parameters are spread over, as `fully_shard` leaves them; None when they are plain tensors.

    Raises ValueError when they are not all alike, or not split by rows over the mesh's last dimension.
    """
    layouts = {(p.device_mesh, p.placements) if isinstance(p, DTensor) else None for p in parameters}
    if layouts == {None}:
        return None
    if len(layouts) != 1 or None in layouts:
        raise ValueError(f"parameters of one optimizer must be spread alike, but there are {len(layouts)} ways: {layouts}")
    mesh, placements = layouts.pop()  # type: ignore[misc]
    if placements not in ((Shard(0),), (Replicate(), Shard(0))):
        raise ValueError(f"parameters must be split by rows over the mesh's last dimension, not {placements}")
    return mesh


def rows_per_shard(rows: int, shards: int) -> list[int]:
    """How many rows of a matrix each shard holds: all the same but the last ones, which may be short or empty."""
    chunk = -(-rows // shards)
    return [max(0, min(chunk, rows - shard * chunk)) for shard in range(shards)]


class Exchange:
    """Collectives over the mesh of the parameters: (shard) or (replicate, shard); None for plain ones, which are one shard.

    Each starts at once and returns what it fills and a function that waits for it; until then what is sent must stay as it
    is. A subclass may stand in for the network.
    """

    def __init__(self, mesh: DeviceMesh | None):
        self.shards = self.replicas = 1
        self.shard = self.replica = 0
        if mesh is not None:
            self._shard_group = mesh.get_group(mesh.ndim - 1)
            self.shards, self.shard = self._shard_group.size(), self._shard_group.rank()
        if mesh is not None and mesh.ndim == 2:
            self._replicate_group = mesh.get_group(0)
            self.replicas, self.replica = self._replicate_group.size(), self._replicate_group.rank()
        self._mesh = mesh

    def all_to_all(self, send: Tensor, send_counts: list[int], recv_counts: list[int]) -> tuple[Tensor, Wait]:
        """Give every shard its part of `send` (flat, parts in the order of the shards); returns what they gave, alike."""
        if self._mesh is None:
            return send, _nothing_to_wait_for
        recv = send.new_empty(sum(recv_counts))
        work = dist.all_to_all_single(recv, send, recv_counts, send_counts, group=self._shard_group, async_op=True)
        return recv, work.wait

    def all_gather(self, send: Tensor, counts: list[int]) -> tuple[list[Tensor], Wait]:
        """What each replica holds, flat; `counts` are their numbers of elements."""
        if self._mesh is None or self._mesh.ndim == 1:
            return [send], _nothing_to_wait_for
        longest = max(counts)
        recv = send.new_empty(self.replicas * longest)
        work = all_gather_single(recv, F.pad(send, (0, longest - send.numel())), group=self._replicate_group, async_op=True)
        return [part[:count] for part, count in zip(recv.view(self.replicas, longest), counts, strict=True)], work.wait

    def sum(self, values: Tensor) -> tuple[Tensor, Wait]:
        """The sum over the shards, in place."""
        if self._mesh is None:
            return values, _nothing_to_wait_for
        work = dist.all_reduce(values, group=self._shard_group, async_op=True)
        return values, work.wait


def _nothing_to_wait_for() -> None:
    pass


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
