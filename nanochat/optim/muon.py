"""Muon: momentum, orthogonalised (Keller Jordan, https://kellerjordan.github.io/posts/muon)."""

from collections import defaultdict
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from nanochat.optim.newton_schulz import orthogonalize

Orthogonalize = Callable[[list[Tensor]], list[Tensor]]


def orthogonalize_by_shape(updates: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Orthogonalise matrices of any shapes, those of one shape as one batch; the results stand in the order given."""
    places: dict[torch.Size, list[int]] = defaultdict(list)
    for place, update in enumerate(updates):
        places[update.shape].append(place)
    results: list[Tensor] = [torch.empty(0)] * len(updates)
    for group in places.values():
        batch = orthogonalize(torch.stack([updates[place] for place in group]), dtype)
        for place, result in zip(group, batch, strict=True):
            results[place] = result
    return results


class Muon(torch.optim.Optimizer):
    """W ← W − lr · √max(1, rows/cols) · orthogonalize(Nesterov momentum), for two-dimensional parameters.

    The elementwise parts (momentum, update) work on whatever piece of a matrix a rank holds; only `orthogonalize` must
    see whole matrices, so that one function is all that sharding replaces.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, momentum: float, orthogonalize_all: Orthogonalize):
        super().__init__(params, {"lr": lr, "momentum": momentum})
        self.orthogonalize_all = orthogonalize_all

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter from its gradient."""
        for group in self.param_groups:
            params = group["params"]
            momentum, gradients = group["momentum"], [p.grad for p in params]
            for p in params:
                if not self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            buffers = [self.state[p]["momentum_buffer"] for p in params]
            torch._foreach_lerp_(buffers, gradients, 1 - momentum)
            updates = self.orthogonalize_all(list(torch._foreach_lerp(gradients, buffers, momentum)))
            for p, update in zip(params, updates, strict=True):
                p.add_(update, alpha=-group["lr"] * max(1.0, p.size(-2) / p.size(-1)) ** 0.5)
