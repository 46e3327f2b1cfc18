"""Completing text: one prompt, one token at a time, over a key-value cache."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from nanochat.model.config import GPTConfig
from nanochat.model.gpt import GPT
from nanochat.tokenizer.tokenizer import Tokenizer


class StaticKVCache:
    """Keys and values of every layer, in one allocation for the whole length, of the dtype and on the device of the first."""

    def __init__(self, config: GPTConfig, batch: int, max_len: int):
        self._shape = (2, config.num_layers, batch, config.num_heads, max_len, config.head_dim)
        self._store: Tensor | None = None
        self._length = 0

    @property
    def length(self) -> int:
        """Positions held."""
        return self._length

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keep the new k, v: (B, H, T, D) of a layer; returns all so far, (B, H, S, D)."""
        if self._store is None:
            self._store = torch.empty(self._shape, device=k.device, dtype=k.dtype)
        end = self._length + k.size(2)
        self._store[0, layer, :, :, self._length : end] = k
        self._store[1, layer, :, :, self._length : end] = v
        if layer == self._store.size(1) - 1:
            self._length = end
        return self._store[0, layer, :, :, :end], self._store[1, layer, :, :, :end]


def sample_token(logits: Tensor, temperature: float, top_k: int, generator: torch.Generator | None) -> Tensor:
    """Draw a token from logits (B, V): the likeliest at temperature 0, else among the top_k (all for 0); (B, 1) int64."""
    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    if 0 < top_k < logits.size(-1):
        kth = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < kth, float("-inf"))
    return torch.multinomial((logits / temperature).softmax(dim=-1), 1, generator=generator)


@torch.no_grad()  # not inference_mode: the weights that sharding brings together here are trained on later
def generate(
    model: GPT,
    prompt: list[int],
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    stop_ids: frozenset[int] = frozenset(),
    agree: Callable[[Tensor], Tensor] = lambda token: token,
) -> Iterator[int]:
    """Yield the ids that follow `prompt`, until `max_new_tokens`, a stop id (not yielded) or the end of the context.

    A prompt longer than the context keeps its end, with room for one token at least. Where several ranks share the weights,
    all of them generate, and `agree` gives each the first one's token.
    """
    device = model.lm_head.weight.device
    context = model.config.max_seq_len
    prompt = prompt[-(context - 1) :] if len(prompt) >= context else prompt
    end = min(context, len(prompt) + max_new_tokens)
    cache = StaticKVCache(model.config, 1, end)
    generator = torch.Generator(device=device).manual_seed(seed)
    ids = torch.tensor([prompt], device=device)
    for _ in range(end - len(prompt)):
        logits = model(ids, cache=cache, logits_to_keep=1)
        ids = agree(sample_token(logits[:, -1], temperature, top_k, generator))
        token = int(ids)
        if token in stop_ids:
            return
        yield token


def complete(
    model: GPT,
    tokenizer: Tokenizer,
    text: str,
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    agree: Callable[[Tensor], Tensor] = lambda token: token,
) -> str:
    """What follows `text`; the end of a document ends it. `agree`: as for `generate`."""
    prompt = [tokenizer.bos_id, *tokenizer.encode(text)]
    stop = frozenset({tokenizer.bos_id})
    with torch.compiler.set_stance("force_eager"):  # a compiled block would be compiled again for every length
        options = {"temperature": temperature, "top_k": top_k, "seed": seed}
        ids = list(generate(model, prompt, max_new_tokens, stop_ids=stop, agree=agree, **options))  # type: ignore[arg-type]
    return tokenizer.decode(ids)
