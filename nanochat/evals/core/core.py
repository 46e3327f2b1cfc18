"""The CORE metric of a model."""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nanochat.evals.core.bundle import CoreTask
from nanochat.evals.core.score import Scored, items_of, score
from nanochat.evals.intervals import wilson
from nanochat.model.gpt import GPT
from nanochat.parallel.ranks import Ranks
from nanochat.tokenizer.tokenizer import Tokenizer

ORDER_SEED = 1337
QUESTIONS_AT_ONCE = 512  # of a rank: their tokens are made, sorted by length and scored together


@dataclass(frozen=True)
class CoreResult:
    """How a model did on one task."""

    kind: str
    shots: int
    chance: float
    correct: int
    total: int
    cut: int
    """Questions that lost their beginning, being longer than the context."""
    seconds: float

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return self.correct / self.total if self.total else 0.0

    @property
    def centered(self) -> float:
        """Accuracy on the scale on which guessing is 0 and all right is 1."""
        return (self.accuracy - self.chance) / (1 - self.chance)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        low, high = wilson(self.correct, self.total)
        shown = {name: getattr(self, name) for name in ("accuracy", "centered", "chance", "correct", "total", "shots", "kind", "cut")}
        return {**shown, "low": low, "high": high, "seconds": round(self.seconds, 2)}


def is_right(task: CoreTask, gold: int, scored: Sequence[Scored]) -> bool:
    """Whether the model answers rightly: by its greedy tokens, or by the choice with the highest mean log-likelihood of a token."""
    if task.kind == "language_modeling":
        return scored[0].greedy
    means = [one.log_likelihood / one.tokens for one in scored]
    return means.index(max(means)) == gold


def evaluate_core_task(
    model: GPT, tokenizer: Tokenizer, task: CoreTask, ranks: Ranks, max_questions: int, tokens_at_once: int
) -> CoreResult:
    """Ask a model a task, spread over the ranks, each of which holds the whole model; at most `max_questions` of it (-1 for all)."""
    started = time.perf_counter()
    order = list(range(len(task.questions)))
    random.Random(ORDER_SEED).shuffle(order)
    asked = order[:max_questions] if max_questions > 0 else order
    mine = asked[ranks.rank :: ranks.world_size]
    correct = cut = 0
    for start in range(0, len(mine), QUESTIONS_AT_ONCE):
        groups = [items_of(task, number, tokenizer, model.config.max_seq_len) for number in mine[start : start + QUESTIONS_AT_ONCE]]
        flat = [one for group in groups for one in group]
        scored = iter(score(model, flat, tokenizer.bos_id, tokens_at_once, greedy=task.kind == "language_modeling"))
        for number, group in zip(mine[start : start + QUESTIONS_AT_ONCE], groups, strict=True):
            correct += is_right(task, task.questions[number].gold, [next(scored) for _ in group])
            cut += any(one.was_cut for one in group)
    sums = [sum(each) for each in zip(*ranks.gather((correct, cut)), strict=True)]
    return CoreResult(task.kind, task.shots, task.chance, sums[0], len(asked), sums[1], time.perf_counter() - started)


def core_metric(results: dict[str, CoreResult]) -> float:
    """The mean of the centred accuracies."""
    return sum(result.centered for result in results.values()) / len(results)
