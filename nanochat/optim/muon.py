"""Muon: momentum, orthogonalised (Keller Jordan, https://kellerjordan.github.io/posts/muon), over shards.

A rank keeps the momentum of the rows that it holds. The matrices are dealt to the ranks; their momentum is brought together
where they are owned, orthogonalised there as a batch, and the rows are sent back, one round of matrices after the other, so
that one's Newton–Schulz hides the sending of the next.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from nanochat.optim.exchange import Exchange, local, mesh_of, rows_per_shard
from nanochat.optim.newton_schulz import orthogonalize
from nanochat.optim.rounds import Round, deal, interleave


def joined(tensors: list[Tensor], dim: int = 0) -> Tensor:
    """The tensors one after the other; a single one is not copied."""
    return torch.cat(tensors, dim) if len(tensors) > 1 else tensors[0]


class Muon(torch.optim.Optimizer):
    """W ← W − lr · √max(1, rows/cols) · U, U = orthogonalize(Nesterov momentum), for two-dimensional parameters.

    Parameters are plain tensors, or DTensors as `fully_shard` makes them. Matrices travel and are orthogonalised in `dtype`,
    in one of newton_schulz's ways. With `beta2` each row of U is scaled to the root mean square that it would have in an orthogonal
    matrix of that shape, by the mean of its squares over past steps (after NorMuon, arXiv 2510.05491). With `hold_norm` a matrix keeps
    the Frobenius norm R that it began with, which must not be zero: W ← R · V / ‖V‖, V = W − lr · R · U / √min(rows, cols) (MuonH).
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        momentum: float,
        dtype: torch.dtype,
        exchange: Exchange | None = None,
        way: str = "plain",
        beta2: float = 0.0,
        hold_norm: bool = False,
    ):
        super().__init__(params, {"lr": lr, "momentum": momentum})
        self.dtype, self.way, self.beta2, self.hold_norm = dtype, way, beta2, hold_norm
        self._norms_kept = False
        self.exchange = exchange or Exchange(mesh_of(p for group in self.param_groups for p in group["params"]))

    @torch.no_grad()
    def init_state(self) -> None:
        """Make the state of every parameter that has none yet: zeros, spread like the parameter."""
        for group in self.param_groups:
            for p in group["params"]:
                if not self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
                    if self.beta2:
                        self.state[p]["mean_square"] = torch.zeros_like(p[:, :1])
                        self.state[p]["steps"] = torch.zeros((), device=p.device)
                    if self.hold_norm:
                        self.state[p]["norm"] = torch.zeros((), device=p.device)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter from its gradient."""
        self.init_state()
        if self.hold_norm and not self._norms_kept:
            self._keep_norms()
        for group in self.param_groups:
            params, momentum = group["params"], group["momentum"]
            gradients, buffers = [local(p.grad) for p in params], [local(self.state[p]["momentum_buffer"]) for p in params]
            torch._foreach_lerp_(buffers, gradients, 1 - momentum)
            rounds = deal(tuple(tuple(p.shape) for p in params), self.exchange.replicas * self.exchange.shards)
            interleave(self._round(each, group, gradients, buffers) for each in rounds)

    def _round(self, matrices: Round, group: dict[str, Any], gradients: list[Tensor], buffers: list[Tensor]) -> Iterator[None]:
        """Update the matrices of a round, in stages: each but the last ends with something on its way."""
        e, (rows, cols) = self.exchange, matrices.shape
        held = rows_per_shard(rows, e.shards)
        dealt = [matrices.owned[replica :: e.replicas] for replica in range(e.replicas)]  # of each replica, shard by shard
        numbers = [[number for owned in by_shard for number in owned] for by_shard in dealt]
        ours, here = numbers[e.replica], held[e.shard]
        owned = [len(each) for each in dealt[e.replica]]
        pieces = [count * here * cols for count in owned]  # elements sent to each shard: our rows of what it owns
        wholes = [owned[e.shard] * each * cols for each in held]  # elements that each shard sends: its rows of what we own

        out = gradients[0].new_empty(sum(pieces), dtype=self.dtype)
        if ours:
            nesterov = torch._foreach_lerp([gradients[n] for n in ours], [buffers[n] for n in ours], group["momentum"])
            torch._foreach_copy_(out.view(len(ours), here, cols).unbind(), nesterov)
            del nesterov
        back, wait = e.all_to_all(out, pieces, wholes)
        yield

        wait()
        parts = [part.view(owned[e.shard], each, cols) for part, each in zip(back.split(wholes), held, strict=True)]
        result = orthogonalize(joined(parts, dim=1), self.dtype, self.way)
        out = joined([piece.flatten() for piece in result.split(held, dim=1)])
        del parts, result
        back, wait = e.all_to_all(out, wholes, pieces)
        yield

        wait()
        out = back
        from_replicas, wait = e.all_gather(out, [len(each) * here * cols for each in numbers])
        yield

        wait()
        updates = [u for part, each in zip(from_replicas, numbers, strict=True) for u in part.view(len(each), here, cols)]
        params = [group["params"][number] for each in numbers for number in each]
        weights = [local(p) for p in params]
        if self.beta2:
            self._even_out([self.state[p] for p in params], updates, 1 / max(rows, cols))
        scale = max(1.0, rows / cols) ** 0.5
        if not self.hold_norm:
            torch._foreach_add_(weights, updates, alpha=-group["lr"] * scale)
            return
        norms = torch.stack([self.state[p]["norm"] for p in params])
        for weight, update, norm in zip(weights, updates, norms, strict=True):
            weight.addcmul_(update, norm, value=-group["lr"] / min(rows, cols) ** 0.5)
        squares, wait = e.sum(torch.stack(torch._foreach_norm(weights)).square_())
        yield

        wait()
        for weight, factor in zip(weights, norms / squares.sqrt(), strict=True):
            weight.mul_(factor)

    def _keep_norms(self) -> None:
        """Keep the norms that matrices begin with, where they are not kept yet."""
        params = [p for group in self.param_groups for p in group["params"]]
        squares, wait = self.exchange.sum(torch.stack(torch._foreach_norm([local(p) for p in params])).square_())
        wait()
        for p, now in zip(params, squares.sqrt(), strict=True):
            kept = self.state[p]["norm"]
            kept.copy_(torch.where(kept > 0, kept, now))
        self._norms_kept = True

    def _even_out(self, states: list[dict[str, Any]], updates: list[Tensor], usual: float) -> None:
        """Scale each row of the updates so that its mean square over past steps is `usual`."""
        for state, update in zip(states, updates, strict=True):
            mean = local(state["mean_square"])
            squares = torch.linalg.vector_norm(update, dim=1, keepdim=True, dtype=torch.float32).square_()
            mean.lerp_(squares / update.size(1), 1 - self.beta2)
            state["steps"] += 1
            corrected = mean / (1 - self.beta2 ** state["steps"])
            update.mul_((usual / (corrected + 1e-12)).sqrt_())
