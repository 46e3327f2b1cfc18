"""Choosing the next token from logits."""

import torch
from torch import Tensor


def _among_the_likeliest(logits: Tensor, top_k: int) -> Tensor:
    """Logits (B, V) with all but the top_k of each row at −∞; all of them for 0."""
    if 0 < top_k < logits.size(-1):
        kth = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < kth, float("-inf"))
    return logits


def sample_token(logits: Tensor, temperature: float, top_k: int, generator: torch.Generator | None) -> Tensor:
    """Draw a token from logits (B, V): the likeliest at temperature 0, else among the top_k (all for 0); (B, 1) int64."""
    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    return torch.multinomial((_among_the_likeliest(logits, top_k) / temperature).softmax(dim=-1), 1, generator=generator)


def sample_rows(logits: Tensor, temperature: float, top_k: int, uniform: Tensor) -> Tensor:
    """Draw a token for each row by a number of its own in [0, 1), uniform: (B,); so a row's token depends on no other row.

    The first token at which the cumulative probability passes the number (inverse transform sampling). Returns (B,) int64.
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    probabilities = (_among_the_likeliest(logits, top_k).double() / temperature).softmax(dim=-1)
    cumulative = probabilities.cumsum(dim=-1)
    return torch.searchsorted(cumulative, (uniform.to(cumulative) * cumulative[:, -1])[:, None], right=True).squeeze(-1)
