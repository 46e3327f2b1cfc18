"""Many prompts answered side by side, each as if it were alone, with the calculator at hand."""

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from nanochat.engine.cache import RaggedKVCache
from nanochat.engine.sample import sample_rows
from nanochat.model.gpt import GPT
from nanochat.parallel.attention import attention_of_any_shape
from nanochat.sandbox.calculator import answer
from nanochat.tokenizer.tokenizer import Tokenizer

COMPACT_AT = 0.75  # the rows that are done leave the batch when no more than this share is left


@dataclass
class Generated:
    """What followed a prompt."""

    ids: list[int] = field(default_factory=list)
    """Tokens, without the one that ends the turn."""
    sampled: list[bool] = field(default_factory=list)
    """Whether the model chose each of them; False for what the tool answered."""
    finished: bool = False
    """Whether the model ended its turn."""
    end: int | None = None
    """The token that it ended it with."""


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


class Row:
    """A prompt and what has followed it so far."""

    def __init__(self, tokenizer: Tokenizer, seed: int, limit: int, tools: bool):
        self.out = Generated()
        self._turn = ToolTurn(tokenizer)
        self._random = random.Random(seed)
        self._limit, self._tools = limit, tools
        special = tokenizer.special_tokens
        self._stops = {special["<|assistant_end|>"], special["<|bos|>"]}
        self.done = limit < 1

    def uniform(self) -> float:
        """The row's next random number, in [0, 1)."""
        return self._random.random()

    def take(self, token: int) -> int:
        """Note what the model would say next; returns what is said: a token that the tool forces goes first."""
        forced = bool(self._turn.forced)
        if forced:
            token = self._turn.forced.popleft()
        elif token in self._stops:
            self.out.finished, self.out.end, self.done = True, token, True
            return token
        self.out.ids.append(token)
        self.out.sampled.append(not forced)
        if self._tools and not forced:
            self._turn.take(token)
        self.done = len(self.out.ids) >= self._limit
        return token


@torch.no_grad()  # not inference_mode: the weights may be trained on later
def generate_batch(
    model: GPT,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    seeds: Sequence[int],
    tools: bool = True,
    max_len: int = 0,
) -> list[Generated]:
    """Answer every prompt, until the model ends its turn, `max_new_tokens`, or the end of the context.

    max_len: tokens of a prompt and its answer together, where that is less than the context.
    seeds: one a prompt; what follows a prompt depends on its own seed and not on its neighbours (within rounding). A tool call,
    `<|python_start|> … <|python_end|>`, is answered with what the calculator says. Prompts of a whole context get no answer.
    """
    context = min(model.config.max_seq_len, max_len or model.config.max_seq_len)
    rows = [Row(tokenizer, seed, min(max_new_tokens, context - len(prompt)), tools) for prompt, seed in zip(prompts, seeds, strict=True)]
    live = [number for number, row in enumerate(rows) if not row.done]
    if not live:
        return [row.out for row in rows]
    device = model.lm_head.weight.device
    lengths = [len(prompts[number]) for number in live]
    longest = max(lengths)
    cache = RaggedKVCache(model.config, lengths, min(context, longest + max_new_tokens), device)
    ids = torch.full((len(live), longest), tokenizer.bos_id, device=device)
    for place, number in enumerate(live):
        ids[place, : lengths[place]] = torch.tensor(list(prompts[number]), device=device)
    with attention_of_any_shape(), torch.compiler.set_stance("force_eager"):  # else compiled again for each length
        logits = model(ids, cache=cache, logits_at=cache.lengths - 1)[:, 0]  # (B, V)
        while True:
            uniform = torch.tensor([rows[number].uniform() for number in live], dtype=torch.float64, device=device)
            chosen = sample_rows(logits, temperature, top_k, uniform).tolist()
            # A row that is done stays in its place, fed with its last token, until enough are: what it says is not taken.
            said = [token if rows[number].done else rows[number].take(token) for number, token in zip(live, chosen, strict=True)]
            going = [place for place, number in enumerate(live) if not rows[number].done]
            if not going:
                return [row.out for row in rows]
            if len(going) <= COMPACT_AT * len(live) or cache.is_full:
                cache.keep(torch.tensor(going, device=device))
                said, live = [said[place] for place in going], [live[place] for place in going]
            logits = model(torch.tensor(said, device=device)[:, None], cache=cache)[:, 0]
