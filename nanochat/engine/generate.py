"""Completing text: one prompt, one token at a time, over a key-value cache."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from nanochat.engine.cache import StaticKVCache
from nanochat.engine.sample import sample_token
from nanochat.model.gpt import GPT
from nanochat.parallel.attention import attention_of_any_shape
from nanochat.tokenizer.tokenizer import Tokenizer


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
    with attention_of_any_shape(), torch.compiler.set_stance("force_eager"):  # else compiled again for every length
        options = {"temperature": temperature, "top_k": top_k, "seed": seed}
        ids = list(generate(model, prompt, max_new_tokens, stop_ids=stop, agree=agree, **options))  # type: ignore[arg-type]
    return tokenizer.decode(ids)
