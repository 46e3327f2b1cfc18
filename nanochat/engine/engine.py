"""Answers to many requests side by side: each joins the running batch when there is room, and leaves it at any step."""

import contextlib
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from nanochat.engine.cache import RowCache
from nanochat.engine.decode import DecodePass, ReplayedPass
from nanochat.engine.guess import guess
from nanochat.engine.sample import Sampling, choose, penalize
from nanochat.model.gpt import GPT
from nanochat.parallel.attention import attention_of_any_shape
from nanochat.sandbox.calculator import answer
from nanochat.tokenizer.tokenizer import Tokenizer

WARM_UP_ROWS = 5  # a number that no other size of a model is likely to have: the compiler takes equal sizes for one
READ_AT_ONCE = 8192  # tokens of prompts that one step reads, padding counted; one prompt may be longer

Finish = Literal["stop", "length", "cancelled"]


class ToolTurn:
    """Follows the tokens of one row and answers its tool calls."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self._call: list[int] | None = None
        self.forced: deque[int] = deque()

    def take(self, token: int) -> None:
        """Note a token; the end of a tool call puts the tool's answer into `forced`."""
        special = self.tokenizer.special_tokens
        if token == special["<|python_start|>"]:
            self._call = []
        elif token == special["<|python_end|>"] and self._call is not None:
            said = answer(self.tokenizer.decode(self._call))
            self.forced.extend([special["<|output_start|>"], *self.tokenizer.encode(said), special["<|output_end|>"]])
            self._call = None
        elif self._call is not None:
            self._call.append(token)


@dataclass
class Scored:
    """How likely a token was."""

    logprob: float
    """Natural logarithm of its probability, before temperature and filters."""
    best: list[tuple[int, float]]
    """The likeliest tokens with theirs."""


@dataclass(eq=False)
class Answer:
    """A prompt and what has followed it so far."""

    prompt: list[int]
    sampling: Sampling
    limit: int
    """Tokens that it may still take, at the start."""
    stops: frozenset[int]
    """Tokens that end it; they are not part of it."""
    tool: ToolTurn | None
    """Answers its tool calls; None for no tools."""
    logprobs: int = -1
    """How many of the likeliest tokens to keep with each token; −1 for no probabilities at all."""
    ids: list[int] = field(default_factory=list)
    """Tokens said, without the one that ends the turn."""
    sampled: list[bool] = field(default_factory=list)
    """Whether the model chose each of them; False for what the tool answered."""
    scores: list[Scored | None] = field(default_factory=list)
    """Probabilities, one for each token, None for what the tool answered; empty without `logprobs`."""
    finish: Finish | None = None
    """How it ended; None while it goes on."""
    end: int | None = None
    """The token that ended it."""

    def __post_init__(self) -> None:
        self._random = random.Random(self.sampling.seed)

    @property
    def finished(self) -> bool:
        """Whether the model itself ended it."""
        return self.finish == "stop"

    @property
    def forced(self) -> Sequence[int]:
        """Tokens that follow whatever the model would say."""
        return self.tool.forced if self.tool else ()

    def uniform(self) -> float:
        """Its next random number, in [0, 1)."""
        return self._random.random()

    def take(self, token: int, score: Scored | None = None) -> int:
        """Note what the model would say next; returns what is said: a token that the tool forces goes first."""
        forced = bool(self.forced)
        if forced:
            assert self.tool
            token, score = self.tool.forced.popleft(), None
        elif token in self.stops:
            self.finish, self.end = "stop", token
            return token
        self.ids.append(token)
        self.sampled.append(not forced)
        if self.logprobs >= 0:
            self.scores.append(score)
        if self.tool and not forced:
            self.tool.take(token)
        if len(self.ids) >= self.limit:
            self.finish = "length"
        return token


@contextlib.contextmanager
def _at_work(model_in_training: bool) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(attention_of_any_shape())
        if model_in_training:  # its layers may be compiled, and would be again for each length
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


class Engine:
    """A model at work on a batch of answers; one that is shared out has its weights whole meanwhile. For one thread, not several."""

    def __init__(
        self, model: GPT, tokenizer: Tokenizer, *, max_rows: int = 64, max_held: int = 0, guesses: int = 0, compiled: bool = False
    ):
        """max_rows: answers at once; max_held: tokens that all of them may come to hold, 0 for no limit; guesses: tokens that a
        lone answer is guessed ahead, from what stands in it already, for the model to confirm in one pass; compiled: compile the
        pass that gives each answer a token, and replay it as a CUDA graph on a GPU, for a model that is not in training."""
        self.model, self.tokenizer = model, tokenizer
        self.max_rows, self.max_held, self.guesses, self.compiled = max_rows, max_held, guesses, compiled
        device = model.model.embed_tokens.weight.device
        self.cache = RowCache(model.config, device, fixed=compiled and device.type == "cuda")
        run = DecodePass(model, self.cache, compiled)
        self._decode: Callable[[Tensor], Tensor] = ReplayedPass(run) if self.cache.fixed else run
        self.waiting: deque[Answer] = deque()
        self._running: dict[int, Answer] = {}
        self._names = 0

    @property
    def context(self) -> int:
        """Tokens of a prompt and its answer together, at most."""
        return self.model.config.max_seq_len

    @property
    def running(self) -> int:
        """Answers in the batch."""
        return len(self._running)

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._running or self.waiting)

    def add(
        self,
        prompt: Sequence[int],
        max_new_tokens: int,
        sampling: Sampling,
        *,
        stops: frozenset[int],
        tools: bool = True,
        logprobs: int = -1,
        max_len: int = 0,
    ) -> Answer:
        """Ask for an answer, which the next steps make; it ends with one of the tokens `stops`, after `max_new_tokens`, or where
        prompt and answer come to `max_len` tokens (0: the context). A prompt that leaves no room gets no answer.
        """
        context = min(self.context, max_len or self.context)
        limit = min(max_new_tokens, context - len(prompt))
        tool = ToolTurn(self.tokenizer) if tools else None
        one = Answer(list(prompt), sampling, limit, stops, tool, logprobs)
        if limit < 1:
            one.finish = "length"
        else:
            self.waiting.append(one)
        return one

    def cancel(self, one: Answer) -> None:
        """Give an answer up; its place is free at once."""
        if one.finish is not None:
            return
        one.finish = "cancelled"
        if one in self.waiting:
            self.waiting.remove(one)
        for name, other in self._running.items():
            if other is one:
                self._leave(name)
                break

    def step(self) -> list[Answer]:
        """Read prompts for which there is room, then let every running answer go on; returns those that said something."""
        return list(dict.fromkeys([*self.read(), *self.go_on()]))

    def read(self) -> list[Answer]:
        """The first half of a step: read prompts for which there is room; returns their answers, each of a token."""
        with _at_work(not self.compiled):
            return self._begin()

    def go_on(self) -> list[Answer]:
        """The second half of a step: every running answer goes on, by a token at least."""
        with _at_work(not self.compiled):
            return self._go_on()

    def warm_up(self) -> None:
        """Compile what there is to compile, before somebody waits for it."""
        for rows in (1, min(WARM_UP_ROWS, self.max_rows)) if self.compiled else ():
            for _ in range(rows):
                self.add([self.tokenizer.bos_id], 3, Sampling(temperature=0), stops=frozenset(), tools=False)
            self.run()

    def run(self) -> None:
        """Steps until nothing is left to do."""
        while self.busy:
            self.step()

    def stream(self, one: Answer) -> Iterator[list[int]]:
        """The tokens of an answer as they come, a few at a time."""
        sent = 0
        while one.finish is None or sent < len(one.ids):
            if sent == len(one.ids):
                self.step()
            if len(one.ids) > sent:
                yield one.ids[sent:]
                sent = len(one.ids)

    def _begin(self) -> list[Answer]:
        some: list[Answer] = []
        longest = 0
        held = sum(len(one.prompt) + one.limit for one in self._running.values())
        while self.waiting and len(self._running) + len(some) < self.max_rows:
            one = self.waiting[0]
            longest = max(longest, len(one.prompt))
            held += len(one.prompt) + one.limit
            if some and (len(some) + 1) * longest > READ_AT_ONCE:
                break
            if self.max_held and held > self.max_held and (some or self._running):
                break
            some.append(self.waiting.popleft())
        if not some:
            return []
        names = list(range(self._names, self._names + len(some)))
        self._names += len(some)
        lengths = [len(one.prompt) for one in some]
        self.cache.read(names, lengths)
        ids = torch.full((len(some), max(lengths)), self.tokenizer.bos_id)
        for row, one in enumerate(some):
            ids[row, : lengths[row]] = torch.tensor(one.prompt)
        last = torch.tensor(lengths, device=self.cache.device) - 1
        logits = self.model(ids.to(self.cache.device), cache=self.cache, logits_at=last)[:, 0]  # (B, V)
        self._running |= dict(zip(names, some, strict=True))
        self._take(names, logits)
        return some

    def _go_on(self) -> list[Answer]:
        if not self._running:
            return []
        if len(self._running) == 1:
            name, one = next(iter(self._running.items()))
            if ahead := self._ahead(one):
                return self._go_on_alone(name, one, ahead)
        rows = self.cache.extend(1)
        ids = torch.tensor([[0 if name is None else self._running[name].ids[-1]] for name in rows])
        logits = self._decode(ids.to(self.cache.device))
        names = [name for name in rows if name is not None]
        some = [self._running[name] for name in names]
        self._take(names, logits if len(names) == len(rows) else logits[[name is not None for name in rows]])
        return some

    def _ahead(self, one: Answer) -> list[int]:
        """What is known to follow in an answer, or is guessed."""
        ahead = list(one.forced)
        if self.guesses and not ahead:
            ahead = guess([*one.prompt, *one.ids], self.guesses)
        return ahead[: one.limit - len(one.ids) - 1]

    def _go_on_alone(self, name: int, one: Answer, ahead: list[int]) -> list[Answer]:
        """One answer has the whole pass to itself: what is ahead goes along and is held against the model."""
        self.cache.extend(1 + len(ahead))
        ids = torch.tensor([[one.ids[-1], *ahead]], device=self.cache.device)
        logits = self.model(ids, cache=self.cache)[0]  # (1 + ahead, V)
        for place, expected in enumerate([*ahead, None]):
            said = self._take([name], logits[place : place + 1])[0]
            if one.finish is not None or said != expected:
                break
        if one.finish is None and place < len(ahead):
            self.cache.shorten(name, len(ahead) - place)
        return [one]

    def _take(self, names: Sequence[int], logits: Tensor) -> list[int]:
        """Choose what each row says, from logits (B, V); returns it. Rows that have ended leave."""
        some = [self._running[name] for name in names]
        how = [one.sampling for one in some]
        scores: list[Scored | None] = [None] * len(some)
        adjusted = logits
        if any(each.repetition_penalty != 1 for each in how):
            adjusted = penalize(logits, [each.repetition_penalty for each in how], [[*one.prompt, *one.ids] for one in some])
        chosen = choose(adjusted, how, [one.uniform() for one in some]).tolist()
        if wanting := [row for row, one in enumerate(some) if one.logprobs >= 0]:
            logprobs = logits[wanting].float().log_softmax(dim=-1)
            for row, each in zip(wanting, logprobs, strict=True):
                values, tokens = each.topk(some[row].logprobs)
                scores[row] = Scored(float(each[chosen[row]]), list(zip(tokens.tolist(), values.tolist(), strict=True)))
        said = [one.take(token, score) for one, token, score in zip(some, chosen, scores, strict=True)]
        for name, one in zip(names, some, strict=True):
            if one.finish is not None:
                self._leave(name)
        return said

    def _leave(self, name: int) -> None:
        del self._running[name]
        self.cache.drop(name)
