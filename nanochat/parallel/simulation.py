"""One rank of many, alone: its true memory and its true computing, over a process group that sends nothing."""

import contextlib
from collections.abc import Iterator

import torch.distributed as dist
from torch import Tensor

from nanochat.optim.exchange import Exchange, Wait
from nanochat.parallel.ranks import Ranks, pick_device


@contextlib.contextmanager
def one_rank_of(world_size: int) -> Iterator[Ranks]:
    """The first of `world_size` ranks of a node, the others being absent: their weights look like this one's."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    device = pick_device()
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)
    try:
        yield Ranks(0, world_size, world_size, device)
    finally:
        dist.destroy_process_group()


class LonelyExchange(Exchange):
    """Muon's exchange where nobody answers: what comes from the others is what they would get from here, over and over."""

    def all_to_all(self, send: Tensor, send_counts: list[int], recv_counts: list[int]) -> tuple[Tensor, Wait]:
        """As much as would come, of this rank's own values: products with zeros, or with what memory held, run at another speed."""
        wanted = sum(recv_counts)
        if not (wanted and send.numel()):
            return send.new_zeros(wanted), lambda: None
        return send.repeat(-(-wanted // send.numel()))[:wanted], lambda: None

    def sum(self, values: Tensor) -> tuple[Tensor, Wait]:
        """As if all shards had the same."""
        return values.mul_(self.shards), lambda: None
