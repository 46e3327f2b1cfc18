"""Generation in batches: each row as if it were alone, tool calls answered in place."""

from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat.engine import batch as batch_module
from nanochat.engine.batch import generate_batch
from nanochat.engine.generate import generate
from nanochat.engine.sample import sample_rows
from nanochat.model.config import GPTConfig
from nanochat.model.directory import load_model
from nanochat.model.gpt import GPT
from nanochat.model.init import init_weights
from nanochat.tokenizer.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def model_and_tokenizer() -> tuple[GPT, Tokenizer]:
    tokenizer = Tokenizer.from_ranks({bytes([byte]): byte for byte in range(256)})
    model = GPT(GPTConfig.from_depth(2, tokenizer.vocab_size, 96))
    init_weights(model, 3, std_of=lambda name, parameter: 1.0 if "embed" in name else 0.15)
    return model.eval(), tokenizer


def alone(model: GPT, tokenizer: Tokenizer, prompt: list[int], tokens: int) -> list[int]:
    """Greedy, one token at a time, without a cache; no tools."""
    stops = {tokenizer.special_id("<|assistant_end|>"), tokenizer.bos_id}
    ids = list(prompt)
    while len(ids) < min(len(prompt) + tokens, model.config.max_seq_len):
        with torch.no_grad():
            token = int(model(torch.tensor([ids]))[0, -1].argmax())
        if token in stops:
            break
        ids.append(token)
    return ids[len(prompt) :]


PROMPTS = [[1, 2, 3], [200] * 40, [7], [int(byte) for byte in b"a longer prompt, of another length"], [9] * 95, [5] * 96]


def test_a_batch_of_ragged_prompts_gives_what_each_gives_alone(model_and_tokenizer: tuple[GPT, Tokenizer]) -> None:
    model, tokenizer = model_and_tokenizer
    made = generate_batch(model, tokenizer, PROMPTS, 30, temperature=0, seeds=range(len(PROMPTS)), tools=False)
    for prompt, row in zip(PROMPTS, made, strict=True):
        assert row.ids == alone(model, tokenizer, prompt, 30)
        assert all(row.sampled)
    assert [len(row.ids) for row in made][-2:] in ([1, 0], [0, 0])  # the end of the context
    stop = frozenset({tokenizer.bos_id, tokenizer.special_id("<|assistant_end|>")})
    assert made[0].ids == list(generate(model, PROMPTS[0], 30, temperature=0, stop_ids=stop))


def test_transformers_generates_the_same(trained: Path) -> None:
    from transformers import AutoModelForCausalLM

    model, tokenizer = load_model(trained, torch.device("cpu"))
    theirs: Any = AutoModelForCausalLM.from_pretrained(trained, dtype=torch.float32)
    prompts = [[tokenizer.bos_id, *tokenizer.encode(text)] for text in ("The ", "A class is", "If the value")]
    made = generate_batch(model, tokenizer, prompts, 12, temperature=0, seeds=[0, 1, 2])
    for prompt, row in zip(prompts, made, strict=True):
        out = theirs.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)[0].tolist()[len(prompt) :]
        assert row.ids == out[: len(row.ids)]
        assert len(row.ids) == 12 or row.finished


def test_what_is_sampled_for_a_row_does_not_depend_on_its_neighbours(model_and_tokenizer: tuple[GPT, Tokenizer]) -> None:
    model, tokenizer = model_and_tokenizer
    together = generate_batch(model, tokenizer, PROMPTS[:4], 25, temperature=1.0, top_k=50, seeds=[11, 12, 13, 14])
    for number in range(4):
        one = generate_batch(model, tokenizer, [PROMPTS[number]], 25, temperature=1.0, top_k=50, seeds=[11 + number])
        assert one[0].ids == together[number].ids
    other = generate_batch(model, tokenizer, PROMPTS[:4], 25, temperature=1.0, top_k=50, seeds=[21, 22, 23, 24])
    assert [row.ids for row in other] != [row.ids for row in together]


def test_a_tool_call_is_answered_in_its_row_and_nowhere_else(
    model_and_tokenizer: tuple[GPT, Tokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = model_and_tokenizer
    special = tokenizer.special_tokens
    script = [special["<|python_start|>"], *tokenizer.encode("6*7"), special["<|python_end|>"]]
    steps = [0]

    def scripted(logits: torch.Tensor, temperature: float, top_k: int, uniform: torch.Tensor) -> torch.Tensor:
        chosen = logits.argmax(dim=-1)
        if steps[0] < len(script):
            chosen[1] = script[steps[0]]
        steps[0] += 1
        return chosen

    monkeypatch.setattr(batch_module, "sample_rows", scripted)
    made = generate_batch(model, tokenizer, PROMPTS[:3], 20, temperature=0, seeds=[0, 1, 2])
    answered = [*script, special["<|output_start|>"], *tokenizer.encode("42"), special["<|output_end|>"]]
    assert made[1].ids[: len(answered)] == answered
    assert made[1].sampled[: len(answered)] == [True] * len(script) + [False] * 4
    assert made[1].ids[len(answered) :] == alone(model, tokenizer, [*PROMPTS[1], *answered], 20 - len(answered))
    assert made[0].ids == alone(model, tokenizer, PROMPTS[0], 20)


def test_drawing_follows_the_probabilities() -> None:
    logits = torch.tensor([0.5, 0.2, 0.2, 0.1]).log().repeat(4000, 1)
    uniform = torch.rand(4000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    shares = torch.bincount(sample_rows(logits, 1.0, 0, uniform), minlength=4) / 4000
    assert torch.allclose(shares, torch.tensor([0.5, 0.2, 0.2, 0.1]), atol=0.03)
    assert set(sample_rows(logits, 1.0, 1, uniform).tolist()) == {0}
    edges = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert sample_rows(logits[:2], 1.0, 0, edges).tolist() == [0, 3]
