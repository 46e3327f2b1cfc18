"""Choosing the next token of each row from its logits."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nanochat.common.errors import UserError

NEARLY_ZERO = 1e-4  # temperatures below it make differences between logits overflow, or nothing but the likeliest likely


@dataclass(frozen=True)
class Sampling:
    """How the tokens of one answer are chosen; the filters apply in this order."""

    repetition_penalty: float = 1.0
    """Logits of tokens that have occurred are divided by it where positive, multiplied where negative (CTRL, arXiv 1909.05858); 1: none."""
    temperature: float = 1.0
    """Randomness; 0, and what is nearly 0, takes the likeliest token."""
    top_k: int = 0
    """Among this many likeliest tokens; 0 for all."""
    top_p: float = 1.0
    """Among the likeliest tokens that together have this probability (arXiv 1904.09751); 1 for all."""
    min_p: float = 0.0
    """Among tokens at least this likely, compared with the likeliest (arXiv 2407.01082); 0 for all."""
    seed: int = 0
    """The same seed and the same answer, whatever else is answered beside it."""

    def check(self) -> None:
        """Raises UserError for a value that means nothing."""
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"temperature {self.temperature}: must be 0 or more")
        if self.top_k < 0:
            raise UserError(f"top_k {self.top_k}: must be 0 or more")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p {self.top_p}: must be more than 0 and at most 1")
        if not 0 <= self.min_p <= 1:
            raise UserError(f"min_p {self.min_p}: must be between 0 and 1")
        if not 0.01 <= self.repetition_penalty <= 100:
            raise UserError(f"repetition_penalty {self.repetition_penalty}: must be between 0.01 and 100")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        return self.temperature < NEARLY_ZERO

    @property
    def filters(self) -> bool:
        """Whether some tokens are never drawn."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0


def penalize(logits: Tensor, penalties: Sequence[float], seen: Sequence[Sequence[int]]) -> Tensor:
    """Logits (B, V) with those of the tokens that each row has seen made less likely by its penalty."""
    logits = logits.clone()
    for row, (penalty, tokens) in enumerate(zip(penalties, seen, strict=True)):
        if penalty != 1:
            places = torch.tensor(sorted(set(tokens)), device=logits.device, dtype=torch.int64)
            values = logits[row, places]
            logits[row, places] = torch.where(values > 0, values / penalty, values * penalty)
    return logits


def choose(logits: Tensor, how: Sequence[Sampling], uniform: Sequence[float]) -> Tensor:
    """The next token of each row, (B,) int64, from logits (B, V); a row's token depends on no other row.

    uniform: a number in [0, 1) for each row; the token is the first at which the cumulative probability passes it (inverse transform
    sampling), in the order of the vocabulary, or of likelihood where a filter is at work. Penalties are `penalize`'s.
    """
    chosen = logits.argmax(dim=-1)
    for filters in (False, True):
        rows = [row for row, one in enumerate(how) if not one.greedy and one.filters == filters]
        if rows:
            drawn = _filtered if filters else _drawn
            some = logits if len(rows) == len(how) else logits[rows]
            chosen[rows] = drawn(some.double(), [how[row] for row in rows], [uniform[row] for row in rows])
    return chosen


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=like.device)[:, None]


def _drawn(logits: Tensor, how: Sequence[Sampling], uniform: Sequence[float]) -> Tensor:
    return _at(logits / _column([one.temperature for one in how], logits), uniform)


def _filtered(logits: Tensor, how: Sequence[Sampling], uniform: Sequence[float]) -> Tensor:
    vocabulary = logits.size(-1)
    wanted = [min(one.top_k or vocabulary, vocabulary) for one in how]
    scaled, order = (logits / _column([one.temperature for one in how], logits)).topk(max(wanted), dim=-1)  # the likeliest first
    rank = torch.arange(scaled.size(1), device=logits.device)
    scaled = scaled.masked_fill(rank >= _column(wanted, logits), float("-inf"))
    probabilities = scaled.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    dropped = before >= _column([one.top_p if one.top_p < 1 else float("inf") for one in how], logits)
    dropped |= probabilities < _column([one.min_p for one in how], logits) * probabilities[:, :1]
    scaled = scaled.masked_fill(dropped & (rank > 0), float("-inf"))
    return order.gather(1, _at(scaled, uniform)[:, None]).squeeze(1)


def _at(logits: Tensor, uniform: Sequence[float]) -> Tensor:
    """The first place in each row at which the cumulative probability passes the row's number."""
    cumulative = logits.softmax(dim=-1).cumsum(dim=-1)
    total = cumulative[:, -1:]
    target = torch.minimum(_column(uniform, logits) * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target, right=True).squeeze(1)
