"""Causal attention of a whole sequence, by whatever computes it fastest."""

import torch
import torch.nn.functional as F
from torch import Tensor

ROW_BLOCKS = 4  # the more, the fewer scores above the diagonal are made in vain: 5/8 of all are made at four


def fused_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """By one kernel that keeps no scores; which one is torch's choice. q, k, v: (B, H, T, D) → (B, H, T, D)."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=q.size(2) > 1)


def attention_by_products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """By plain products, a block of rows at a time. q, k, v: (B, H, T, D) → (B, H, T, D).

    It keeps the weights of all tokens for its backward pass. Where a CPU multiplies bf16 in hardware it is several times
    faster than the fused kernel as long as sequences are short.
    """
    tokens, scale = q.size(2), q.size(3) ** -0.5
    rows = -(-tokens // ROW_BLOCKS)
    results = []
    for start in range(0, tokens, rows):
        stop = min(start + rows, tokens)
        scores = (q[:, :, start:stop] @ k[:, :, :stop].transpose(2, 3)) * scale
        seen = torch.ones(stop - start, stop, dtype=torch.bool, device=q.device).tril(start)
        weights = torch.softmax(scores.masked_fill(~seen, float("-inf")), dim=-1)
        results.append(weights @ v[:, :, :stop])
    return torch.cat(results, dim=2)
