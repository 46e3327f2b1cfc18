"""How matrices are dealt to ranks, and that sending overlaps with the work."""

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from nanochat.optim import muon
from nanochat.optim.exchange import Exchange, Wait, mesh_of, rows_per_shard
from nanochat.optim.muon import Muon
from nanochat.optim.rounds import deal

# Five iterations of X·Xᵀ, its square, and the product with X.
SHAPE_COSTS = {(64, 64): 30 * 64**3, (64, 256): 90 * 64**3, (256, 64): 90 * 64**3, (128, 128): 30 * 128**3}


@given(st.lists(st.sampled_from(sorted(SHAPE_COSTS)), max_size=60), st.integers(1, 9))
def test_every_matrix_has_one_owner_and_no_rank_much_more_work(shapes: list[tuple[int, int]], owners: int) -> None:
    work = [0] * owners
    dealt = []
    for each in deal(tuple(shapes), owners):
        assert all(shapes[number] == each.shape for owned in each.owned for number in owned)
        for owner, owned in enumerate(each.owned):
            dealt += owned
            work[owner] += len(owned) * SHAPE_COSTS[each.shape]
    assert sorted(dealt) == list(range(len(shapes)))
    assert max(work) <= sum(work) / owners + max((SHAPE_COSTS[shape] for shape in shapes), default=0)
    if len({SHAPE_COSTS[shape] for shape in shapes}) == 1:
        assert max(work) - min(work) <= SHAPE_COSTS[shapes[0]]


@given(st.integers(0, 60), st.integers(1, 9), st.integers(1, 4))
def test_batches_stay_within_the_bound(count: int, owners: int, in_a_batch: int) -> None:
    rounds = deal(((8, 16),) * count, owners, max_batch_elements=8 * 16 * in_a_batch + 1)
    assert all(len(owned) <= in_a_batch for each in rounds for owned in each.owned)
    assert len(rounds) == -(-count // (owners * in_a_batch))


@given(st.integers(1, 70), st.integers(1, 9))
def test_rows_are_split_as_torch_splits_them(rows: int, shards: int) -> None:
    chunks = [len(chunk) for chunk in torch.empty(rows, 1).chunk(shards)]
    assert rows_per_shard(rows, shards) == chunks + [0] * (shards - len(chunks))


class Diary(Exchange):
    """Writes down when something is sent and when it is waited for; a rank alone gets back what it sends."""

    def __init__(self, events: list[str]):
        super().__init__(None)
        self.events, self.sent = events, 0

    def all_to_all(self, send: Tensor, send_counts: list[int], recv_counts: list[int]) -> tuple[Tensor, Wait]:
        """Sends to itself."""
        name = f"{self.sent}"
        self.sent += 1
        self.events.append(f"send {name}")
        return send.clone(), lambda: self.events.append(f"wait {name}")


def test_the_next_round_is_on_its_way_before_this_one_is_worked_on(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    orthogonalize = muon.orthogonalize

    def noted(matrices: Tensor, dtype: torch.dtype, *how: str) -> Tensor:
        events.append("work")
        return orthogonalize(matrices, dtype, *how)

    monkeypatch.setattr(muon, "orthogonalize", noted)
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in ((16, 32), (16, 16), (32, 16))]
    for p in parameters:
        p.grad = torch.randn_like(p)
    Muon(parameters, 0.02, 0.9, torch.float32, Diary(events)).step()
    # Of each round: its way there, the work, its way back. The second sets out before the first is worked on; the first comes
    # back while the second is worked on.
    assert events[:5] == ["send 0", "send 1", "wait 0", "work", "send 2"]
    assert events[5:10] == ["send 3", "wait 1", "work", "send 4", "wait 2"]
    assert events[10:] == ["wait 3", "work", "send 5", "wait 4", "wait 5"]


def test_layouts_that_fully_shard_does_not_make_are_refused() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        by_rows, by_columns = (distribute_tensor(torch.zeros(4, 4), mesh, [Shard(dim)]) for dim in (0, 1))
        assert mesh_of([by_rows, by_rows]) == mesh
        assert mesh_of([torch.zeros(2, 2), torch.zeros(3, 3)]) is None
        with pytest.raises(ValueError, match="split by rows"):
            mesh_of([by_columns])
        with pytest.raises(ValueError, match="spread alike"):
            mesh_of([by_rows, torch.zeros(4, 4)])
    finally:
        dist.destroy_process_group()
