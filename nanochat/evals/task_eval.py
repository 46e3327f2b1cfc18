"""One task asked of one model: choices by their letters' logits, answers by generation."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from nanochat.common.errors import UserError
from nanochat.engine.batch import generate_batch
from nanochat.evals.intervals import wilson
from nanochat.evals.tasks.task import ENDLESS, Examples, Split, Task, TaskUnavailable
from nanochat.model.gpt import GPT
from nanochat.parallel.attention import attention_of_any_shape
from nanochat.parallel.ranks import Ranks
from nanochat.tokenizer.conversation import Conversation, Renderer, parts_of, question_of, text_of
from nanochat.tokenizer.tokenizer import Tokenizer

ENDLESS_PROBLEMS = 256
SEED_STEP = 1_000_003  # between the seeds of neighbouring questions, more than there are samples of one


@dataclass(frozen=True)
class Asking:
    """How questions are asked."""

    temperature: float = 0.0
    top_k: int = 50
    num_samples: int = 1
    batch_size: int = 32
    """Answers that a rank works on side by side."""
    max_problems: int = -1
    max_new_tokens: int = -1
    seed: int = 0


@dataclass(frozen=True)
class TaskResult:
    """How a model did on a task."""

    kind: str
    correct: float
    """Questions answered rightly; with several answers to each, the sum of their shares."""
    total: int
    chance: float
    best_constant: float | None
    """Share that the best constant answer gets right; None where answers are not comparable."""
    num_samples: int
    solved: int
    """Questions with one right answer at least."""
    too_long: int
    """Questions that leave no room for an answer; they count as wrong."""
    seconds: float

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return self.correct / self.total if self.total else 0.0

    @property
    def centered(self) -> float:
        """Accuracy on the scale on which guessing is 0."""
        return (self.accuracy - self.chance) / (1 - self.chance)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        low, high = wilson(self.correct, self.total)
        return {
            "accuracy": self.accuracy,
            "correct": self.correct,
            "total": self.total,
            "low": low,
            "high": high,
            "chance": self.chance,
            "centered": self.centered,
            "kind": self.kind,
            "best_constant": self.best_constant,
            "num_samples": self.num_samples,
            "pass_at_k": self.solved / self.total if self.num_samples > 1 and self.total else None,
            "too_long": self.too_long,
            "seconds": round(self.seconds, 2),
        }


def evaluate_task(model: GPT, tokenizer: Tokenizer, task: Task, ranks: Ranks, asking: Asking) -> TaskResult:
    """Ask a model the test questions of a task, spread over the ranks, each of which holds the whole model.

    Raises what the task does where its questions cannot be had, or its answers cannot be judged, on every rank alike.
    """
    started = time.perf_counter()
    examples = examples_on_all(task, "test", ranks)
    most = asking.max_problems if asking.max_problems > 0 else ENDLESS_PROBLEMS if len(examples) == ENDLESS else len(examples)
    total = min(most, len(examples))
    mine = range(ranks.rank, total, ranks.world_size)
    judge = _judge_choices if task.kind == "choice" else _judge_answers
    marks, problem = [], None
    try:
        marks = list(judge(model, tokenizer, task, examples, mine, asking))
    except UserError as error:  # of this rank alone, it may be
        problem = error
    every = []
    for their_marks, their_problem in ranks.gather((marks, problem)):
        if their_problem is not None:
            raise their_problem
        every += their_marks
    answers = Counter(str(mark.answer) for mark in every if mark.answer is not None)
    return TaskResult(
        kind=task.kind,
        correct=sum(mark.right for mark in every),
        total=total,
        chance=task.chance,
        best_constant=max(answers.values()) / total if sum(answers.values()) == total and total else None,
        num_samples=1 if task.kind == "choice" else asking.num_samples,
        solved=sum(mark.right > 0 for mark in every),
        too_long=sum(mark.too_long for mark in every),
        seconds=time.perf_counter() - started,
    )


def examples_on_all(task: Task, split: Split, ranks: Ranks) -> Examples:
    """The examples of a split on every rank: fetched by the first, found by the others.

    Raises what the task does where they cannot be had, on every rank alike.
    """
    ranks.from_first(lambda: len(task.examples(split)))
    examples, problem = None, None
    try:
        examples = task.examples(split)
        len(examples)
    except (UserError, OSError) as error:
        problem = error
    for rank, each in enumerate(ranks.gather(problem)):
        if each is not None:
            raise TaskUnavailable(f"rank {rank} does not find what the first one has: {each}")
    assert examples is not None
    return examples


@dataclass(frozen=True)
class Mark:
    """What became of one question."""

    right: float
    """Share of its answers that are right."""
    answer: str | None
    """The right answer, where it is one short text."""
    too_long: bool = False


def _in_batches(prompts: dict[int, list[int]], size: int) -> Iterator[list[int]]:
    """Numbers of prompts, those of like length together: the longest sets the length of its batch."""
    ordered = sorted(prompts, key=lambda number: len(prompts[number]))
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]


@torch.no_grad()
def _judge_choices(
    model: GPT, tokenizer: Tokenizer, task: Task, examples: Examples, numbers: Sequence[int], asking: Asking
) -> Iterator[Mark]:
    """Of the letters to choose from, the one with the highest logit is the answer."""
    renderer, context = Renderer(tokenizer), model.config.max_seq_len
    device = model.lm_head.weight.device
    chosen = {number: examples[number] for number in numbers}
    prompts = {number: renderer.prompt(question_of(example)) for number, example in chosen.items()}
    fitting = {number: prompt for number, prompt in prompts.items() if len(prompt) <= context}
    for number in prompts.keys() - fitting.keys():
        yield Mark(0.0, chosen[number]["answer"], too_long=True)
    for batch in _in_batches(fitting, asking.batch_size):
        lengths = [len(fitting[number]) for number in batch]
        ids = torch.full((len(batch), max(lengths)), tokenizer.bos_id, device=device)
        for row, number in enumerate(batch):
            ids[row, : lengths[row]] = torch.tensor(fitting[number], device=device)
        with attention_of_any_shape(), torch.compiler.set_stance("force_eager"):
            logits = model(ids, logits_at=torch.tensor(lengths, device=device) - 1)[:, 0]  # (B, V)
        for row, number in enumerate(batch):
            example = chosen[number]
            letters = [tokenizer.encode(letter)[0] for letter in example["letters"]]
            best = example["letters"][int(logits[row, letters].argmax())]
            yield Mark(float(best == example["answer"]), example["answer"])


def _judge_answers(
    model: GPT, tokenizer: Tokenizer, task: Task, examples: Examples, numbers: Sequence[int], asking: Asking
) -> Iterator[Mark]:
    """The model writes its answers, with the calculator at hand, and the task judges their words."""
    renderer, context = Renderer(tokenizer), model.config.max_seq_len
    chosen = {number: examples[number] for number in numbers}
    prompts = {number: renderer.prompt(question_of(example)) for number, example in chosen.items()}
    fitting = {number: prompt for number, prompt in prompts.items() if len(prompt) < context}
    for number in prompts.keys() - fitting.keys():
        yield Mark(0.0, chosen[number].get("answer"), too_long=True)
    for batch in _in_batches(fitting, max(1, asking.batch_size // asking.num_samples)):
        asked = [(number, sample) for number in batch for sample in range(asking.num_samples)]
        replies = generate_batch(
            model,
            tokenizer,
            [fitting[number] for number, _ in asked],
            asking.max_new_tokens if asking.max_new_tokens > 0 else task.max_new_tokens,
            temperature=asking.temperature,
            top_k=asking.top_k,
            seeds=[asking.seed + SEED_STEP * number + sample for number, sample in asked],
        )
        texts = [text_of(parts_of(tokenizer, reply.ids)) for reply in replies]
        judged = judge_all(task, [(chosen[number], text) for (number, _), text in zip(asked, texts, strict=True)])
        for place, number in enumerate(batch):
            right = judged[place * asking.num_samples : (place + 1) * asking.num_samples]
            yield Mark(sum(right) / asking.num_samples, chosen[number].get("answer"))


def judge_all(task: Task, pairs: Sequence[tuple[Conversation, str]]) -> list[bool]:
    """Whether each reply answers its example; programs that have to be run are, several at a time."""
    judge: list[Callable[[], bool]] = [partial(task.correct, example, text) for example, text in pairs]
    if not task.runs_code:
        return [each() for each in judge]
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda each: each(), judge))
