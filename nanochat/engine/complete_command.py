"""Completing text from the command line."""

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from nanochat.common.errors import UserError

if TYPE_CHECKING:
    from nanochat.model.gpt import GPT
    from nanochat.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class CompleteSettings:
    """Ask a finished chat model a question, or let a base model continue a text."""

    prompt: Annotated[str, tyro.conf.arg(aliases=["-p"])]
    """The question, or with --base the text to continue."""
    base: bool = False
    """Use the base model, which continues text."""
    model_tag: str = ""
    """Run to take the model of. Default: the newest."""
    max_tokens: int = 128
    """Most tokens to write."""
    temperature: float = 0.8
    """Randomness; 0 takes the likeliest token each time."""
    top_k: int = 50
    """Choose among this many likeliest tokens; 0 for all."""
    seed: int = 0
    """Seed of the randomness."""


def complete_command(settings: CompleteSettings) -> None:
    """Print the prompt and its continuation, as it comes. Raises UserError for a wrong request."""
    if settings.max_tokens < 1 or not 0 <= settings.temperature < float("inf") or settings.top_k < 0:
        raise UserError("--max_tokens must be 1 or more, --temperature and --top_k 0 or more")
    from nanochat.model.find import find_model

    directory = find_model(("base",) if settings.base else ("dpo", "rl", "sft", "mid"), settings.model_tag)
    import codecs

    import torch

    from nanochat.engine.generate import generate
    from nanochat.model.directory import load_model

    model, tokenizer = load_model(directory, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    if not settings.base:
        print(_answer(model, tokenizer, settings))
        return
    prompt = [tokenizer.bos_id, *tokenizer.encode(settings.prompt)]
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    sys.stdout.write(settings.prompt)
    for token in generate(
        model,
        prompt,
        settings.max_tokens,
        temperature=settings.temperature,
        top_k=settings.top_k,
        seed=settings.seed,
        stop_ids=frozenset({tokenizer.bos_id}),
    ):
        sys.stdout.write(decoder.decode(tokenizer.decode_bytes([token])))
        sys.stdout.flush()
    print(decoder.decode(b"", final=True))


def _answer(model: "GPT", tokenizer: "Tokenizer", settings: CompleteSettings) -> str:
    """The chat model's reply to the prompt, with its tool calls."""
    from nanochat.engine.batch import generate_batch
    from nanochat.tokenizer.conversation import Renderer, parts_of

    asked = Renderer(tokenizer).prompt({"messages": [{"role": "user", "content": settings.prompt}]})
    options = {"temperature": settings.temperature, "top_k": settings.top_k}
    reply = generate_batch(model, tokenizer, [asked], settings.max_tokens, seeds=[settings.seed], **options)[0]  # type: ignore[arg-type]
    marks = {"text": "{}", "python": "[calculator: {}", "python_output": " = {}] "}
    return "".join(marks[part["type"]].format(part["text"]) for part in parts_of(tokenizer, reply.ids))
