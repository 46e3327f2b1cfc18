"""Head and loss fused: the logits of all tokens never exist at once, and the gradient is made in the forward pass."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nanochat.plan.memory import chunk_tokens

NO_TARGET = -1

ChunkLoss = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]


def softcap(logits: Tensor, cap: float) -> Tensor:
    """cap · tanh(logits / cap): keeps logits within ±cap (Gemma 2, arXiv 2408.00118)."""
    return cap * torch.tanh(logits / cap)


def chunk_loss(logits: Tensor, targets: Tensor, cap: float) -> tuple[Tensor, Tensor]:
    """Cross-entropy of soft-capped logits and its gradient with respect to the logits before the cap.

    logits: (n, V) before the cap; targets: (n,), −1 where there is none. Returns losses (n,) in nats, float32, and the
    gradient (n, V) in the logits' dtype. No maximum is taken off before exp: the cap bounds it.
    """
    tanh = torch.tanh(logits.float() / cap)
    z = cap * tanh
    exp = torch.exp(z)
    total = exp.sum(dim=-1, keepdim=True)
    has_target = (targets != NO_TARGET)[:, None]
    is_target = torch.arange(logits.size(1), device=logits.device)[None, :] == targets[:, None]
    losses = total.log() - torch.where(is_target, z, 0.0).sum(dim=-1, keepdim=True)
    gradient = (exp / total - is_target.float()) * (1 - tanh * tanh)
    return torch.where(has_target, losses, 0.0).squeeze(-1), torch.where(has_target, gradient, 0.0).to(logits.dtype)


class SummedHeadLoss(torch.autograd.Function):
    """Sum of the losses over all tokens; its gradients are made chunk by chunk while the logits are there."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, factors: Tensor | None, cap: float, chunk: int, loss_of: ChunkLoss
    ) -> Tensor:
        """hidden: (N, d); weight: (V, d), of the same dtype; targets: (N,); factors: (N,) on the losses, or None → float32 scalar."""
        total = torch.zeros((), device=hidden.device)
        d_hidden, d_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        for start in range(0, len(hidden), chunk):
            x, t, dx = (each[start : start + chunk] for each in (hidden, targets, d_hidden))
            losses, d_logits = loss_of(x @ weight.t(), t, cap)
            if factors is not None:
                losses *= factors[start : start + chunk]
                d_logits *= factors[start : start + chunk, None].to(d_logits.dtype)
            total += losses.sum()
            torch.mm(d_logits, weight, out=dx)
            d_weight.addmm_(d_logits.t(), x)
            del losses, d_logits  # or they would stay while the next chunk's are made
        ctx.gradients = (d_hidden, d_weight)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Both gradients times the one of the sum, in place: they are as large as the hidden states and the head."""
        d_hidden, d_weight = ctx.gradients
        ctx.gradients = None
        return d_hidden.mul_(upstream[0]), d_weight.mul_(upstream[0]), None, None, None, None, None


class Head(nn.Linear):
    """The output layer: logits, or losses without ever holding all logits."""

    def __init__(self, hidden_size: int, vocab_size: int, logit_softcap: float):
        super().__init__(hidden_size, vocab_size, bias=False)
        self.logit_softcap = logit_softcap
        self.chunk_loss: ChunkLoss = chunk_loss  # a compiled one may take its place

    def forward(
        self,
        hidden: Tensor,
        targets: Tensor | None = None,
        per_token: bool = False,
        weights: Tensor | None = None,
        likeliest: bool = False,
    ) -> Tensor:
        """hidden: (…, d) → soft-capped logits (…, V) in float32; with targets their summed loss, or each one's with per_token.

        With likeliest: whether each target is the likeliest token.
        """
        if targets is None:
            return softcap(super().forward(hidden).float(), self.logit_softcap)
        if likeliest:
            return self.hits(hidden, targets)
        return self.losses(hidden, targets) if per_token else self.loss_sum(hidden, targets, weights)

    def _flat(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, int]:
        chunk = chunk_tokens(self.out_features, on_gpu=hidden.device.type == "cuda")
        return hidden.reshape(-1, self.in_features), targets.reshape(-1), chunk

    def loss_sum(self, hidden: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """Sum of the cross-entropies in nats over every token that has a target; differentiable.

        hidden: (B, T, d); targets: (B, T), −1 where there is none; weights: (B, T) factors on the losses, or None → float32 scalar.
        """
        x, t, chunk = self._flat(hidden, targets)
        total: Tensor = SummedHeadLoss.apply(
            x, self.weight, t, None if weights is None else weights.reshape(-1), self.logit_softcap, chunk, self.chunk_loss
        )
        return total

    @torch.no_grad()
    def losses(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy in nats of each token, (B, T) float32, 0 where there is no target; not differentiable."""
        x, t, chunk = self._flat(hidden, targets)
        pieces = zip(x.split(chunk), t.split(chunk), strict=True)
        return torch.cat([self.chunk_loss(xs @ self.weight.t(), ts, self.logit_softcap)[0] for xs, ts in pieces]).view(targets.shape)

    @torch.no_grad()
    def hits(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Whether each target is the likeliest token, bool (B, T); True where there is no target."""
        x, t, chunk = self._flat(hidden, targets)
        pieces = zip(x.split(chunk), t.split(chunk), strict=True)
        return torch.cat([((xs @ self.weight.t()).argmax(dim=-1) == ts) | (ts == NO_TARGET) for xs, ts in pieces]).view(targets.shape)
