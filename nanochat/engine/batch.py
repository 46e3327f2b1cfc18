"""Many prompts answered side by side, each as if it were alone, with the calculator at hand."""

from collections.abc import Sequence

from nanochat.engine.engine import Answer, Engine
from nanochat.engine.sample import Sampling
from nanochat.model.gpt import GPT
from nanochat.tokenizer.tokenizer import Tokenizer


def turn_ends(tokenizer: Tokenizer) -> frozenset[int]:
    """The tokens that end an assistant's turn."""
    return frozenset({tokenizer.special_id("<|assistant_end|>"), tokenizer.bos_id})


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
) -> list[Answer]:
    """Answer every prompt, until the model ends its turn, `max_new_tokens`, or the end of the context.

    max_len: tokens of a prompt and its answer together, where that is less than the context.
    seeds: one a prompt; what follows a prompt depends on its own seed and not on its neighbours (within rounding). A tool call,
    `<|python_start|> … <|python_end|>`, is answered with what the calculator says. Prompts of a whole context get no answer.
    """
    engine, stops = Engine(model, tokenizer, max_rows=max(1, len(prompts))), turn_ends(tokenizer)
    answers = [
        engine.add(
            prompt, max_new_tokens, Sampling(temperature=temperature, top_k=top_k, seed=seed), stops=stops, tools=tools, max_len=max_len
        )
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    engine.run()
    return answers


def complete(model: GPT, tokenizer: Tokenizer, text: str, max_new_tokens: int, sampling: Sampling) -> str:
    """What follows `text`; the end of a document ends it. A text longer than the context keeps its end, with room for one token."""
    engine = Engine(model, tokenizer)
    prompt = [tokenizer.bos_id, *tokenizer.encode(text)][-(engine.context - 1) :]
    one = engine.add(prompt, max_new_tokens, sampling, stops=frozenset({tokenizer.bos_id}), tools=False)
    engine.run()
    return tokenizer.decode(one.ids)
