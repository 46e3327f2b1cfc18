"""How likely a model finds continuations: the questions of a task as token rows, scored in batches."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from nanochat.evals.core.bundle import CoreTask
from nanochat.model.gpt import GPT
from nanochat.model.loss import NO_TARGET
from nanochat.parallel.attention import attention_of_any_shape
from nanochat.tokenizer.tokenizer import Tokenizer

SHOTS_SEED = 1234
BETWEEN_SHOTS = "\n\n"


@dataclass(frozen=True)
class Item:
    """A context with one continuation, as tokens."""

    ids: list[int]
    start: int
    """Where the continuation's tokens begin."""
    was_cut: bool
    """Whether the beginning was left out, because the whole is longer than the model's context."""


@dataclass(frozen=True)
class Scored:
    """What the model thinks of a continuation."""

    log_likelihood: float
    """Sum over its tokens, nats."""
    tokens: int
    greedy: bool
    """Whether each of its tokens is the likeliest."""


def item(tokenizer: Tokenizer, context: str, continuation: str, context_len: int) -> Item:
    """Tokens of `<|bos|>`, context, continuation. White space between the two belongs to the continuation, as in lm-eval.

    What is longer than context_len + 1 tokens loses its beginning.
    """
    prefix = context.rstrip()
    whole = [tokenizer.bos_id, *tokenizer.encode(context + continuation)]
    start = min(1 + len(tokenizer.encode(prefix)), len(whole) - 1)
    over = max(0, len(whole) - (context_len + 1))
    return Item(whole[over:], max(start - over, 1), over > 0)


def items_of(task: CoreTask, number: int, tokenizer: Tokenizer, context_len: int) -> list[Item]:
    """The items of question `number`, one for each choice, after the task's solved questions, drawn by a seed of the number's own."""
    question, shots = task.questions[number], ""
    if task.shots:
        others = [other for other in range(len(task.questions)) if other != number]
        for other in random.Random(SHOTS_SEED + number).sample(others, task.shots):
            solved = task.questions[other]
            shots += solved.contexts[solved.gold] + task.delimiter + solved.continuations[solved.gold] + BETWEEN_SHOTS
    return [
        item(tokenizer, shots + context + task.delimiter, continuation, context_len)
        for context, continuation in zip(question.contexts, question.continuations, strict=True)
    ]


def _batches(items: Sequence[Item], tokens: int) -> Iterator[list[int]]:
    """Numbers of items of like length, with at most so many tokens together, padding included; one item at least."""
    batch: list[int] = []
    for number in sorted(range(len(items)), key=lambda number: len(items[number].ids)):
        if batch and (len(batch) + 1) * len(items[number].ids) > tokens:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


@torch.no_grad()
def score(model: GPT, items: Sequence[Item], pad_id: int, tokens_at_once: int, greedy: bool = False) -> list[Scored]:
    """Score every item, in batches of at most `tokens_at_once` tokens; greedy is found out only when it is asked for."""
    device = model.lm_head.weight.device
    scored: list[Scored | None] = [None] * len(items)
    for batch in _batches(items, tokens_at_once):
        longest = max(len(items[number].ids) for number in batch) - 1
        ids = torch.full((len(batch), longest), pad_id)
        targets = torch.full((len(batch), longest), NO_TARGET)
        for row, number in enumerate(batch):
            one = items[number]
            ids[row, : len(one.ids) - 1] = torch.tensor(one.ids[:-1])
            targets[row, one.start - 1 : len(one.ids) - 1] = torch.tensor(one.ids[one.start :])
        ids, targets = ids.to(device), targets.to(device)
        with attention_of_any_shape(), torch.compiler.set_stance("force_eager"):
            sums = -model(ids, targets, per_token=True).double().sum(dim=1)
            hits = model(ids, targets, likeliest=True).all(dim=1).tolist() if greedy else [False] * len(batch)
        for row, (number, total) in enumerate(zip(batch, sums.tolist(), strict=True)):
            scored[number] = Scored(total, len(items[number].ids) - items[number].start, hits[row])
    return [one for one in scored if one is not None]
