"""The model against transformers' own NanoChat, and its cache against a pass over everything."""

import json
from pathlib import Path

import pytest
import torch

from nanochat.engine.cache import StaticKVCache
from nanochat.engine.generate import generate
from nanochat.model.config import GPTConfig
from nanochat.model.directory import load_model, save_model
from nanochat.model.gpt import GPT
from nanochat.model.init import init_weights
from nanochat.plan import sizes
from nanochat.tokenizer.tokenizer import Tokenizer


def random_model(depth: int, vocab_size: int = 300, seq_len: int = 48) -> GPT:
    """A model none of whose weights is zero."""
    model = GPT(GPTConfig.from_depth(depth, vocab_size, seq_len))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(parameter.numel()))
    return model


@pytest.mark.parametrize("depth", [1, 3, 4])
def test_parameters_are_those_of_the_plan(depth: int) -> None:
    model = GPT(GPTConfig.from_depth(depth, 300, 48))
    assert sum(p.numel() for p in model.parameters()) == sizes.parameters(depth, 300)


@pytest.mark.parametrize("depth", [1, 3, 4])
def test_transformers_opens_the_directory_and_gives_the_same_logits(depth: int, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    tokenizer = Tokenizer.from_ranks({bytes([byte]): byte for byte in range(256)})
    model = random_model(depth, tokenizer.vocab_size)
    save_model(tmp_path / "model", model, tokenizer, torch.float32, "card")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert type(theirs).__name__ == "NanoChatForCausalLM"
    ids = torch.randint(0, tokenizer.vocab_size, (2, 48), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        want, ours = theirs(ids).logits, model(ids)
    assert want.std() > 0.5
    torch.testing.assert_close(ours, want, atol=1e-4, rtol=0)
    reloaded, _ = load_model(tmp_path / "model", torch.device("cpu"))
    assert torch.equal(reloaded(ids), ours)


def test_every_field_of_transformers_config_is_set(tmp_path: Path) -> None:
    from transformers import NanoChatConfig

    tokenizer = Tokenizer.from_ranks({bytes([byte]): byte for byte in range(256)})
    save_model(tmp_path / "model", random_model(2, tokenizer.vocab_size), tokenizer, torch.float32, "card")
    ours = json.loads((tmp_path / "model/config.json").read_text())
    theirs = NanoChatConfig.from_pretrained(tmp_path / "model")
    assert (theirs.hidden_size, theirs.intermediate_size, theirs.num_attention_heads) == (128, 512, 1)
    fields = {name for name in NanoChatConfig.__annotations__ if name not in ("model_type", "base_model_tp_plan")}
    assert "bos_token_id" in fields
    assert fields <= set(ours)


@pytest.mark.parametrize("pieces", [[48], [1] * 48, [5, 1, 20, 1, 1, 20]])
def test_a_cache_changes_nothing(pieces: list[int]) -> None:
    model = random_model(4)
    ids = torch.randint(0, 300, (2, 48), generator=torch.Generator().manual_seed(1))
    cache = StaticKVCache(model.config, 2, 48)
    with torch.no_grad():
        parts = [model(part, cache=cache) for part in ids.split(pieces, dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), model(ids), atol=2e-5, rtol=0)


def test_greedy_generation_is_argmax_of_the_whole_and_stops_where_told() -> None:
    model = random_model(2)
    prompt, expected = [3, 1, 4], []
    for _ in range(20):
        with torch.no_grad():
            expected.append(int(model(torch.tensor([prompt + expected]))[0, -1].argmax()))
    assert list(generate(model, prompt, 20, temperature=0)) == expected
    first = expected.index(expected[7])
    assert list(generate(model, prompt, 20, temperature=0, stop_ids=frozenset({expected[7]}))) == expected[:first]
    assert len(list(generate(model, prompt, 1000))) == 48 - 3
    assert len(list(generate(model, list(range(200)), 10))) == 1


def test_sampling_repeats_with_its_seed_and_keeps_to_top_k() -> None:
    model = random_model(2)
    one, same, other = (list(generate(model, [5], 30, top_k=5, seed=seed)) for seed in (1, 1, 2))
    assert one == same != other
    with torch.no_grad():
        logits = model(torch.tensor([[5, *one]]))[0]
    assert all(token in logits[place].topk(5).indices for place, token in enumerate(one))


def test_the_start_has_the_right_spread_and_zeros() -> None:
    model = GPT(GPTConfig.from_depth(4, 4096, 32))
    init_weights(model, 0)
    for name, parameter in model.named_parameters():
        if name.endswith(("o_proj.weight", "fc2.weight", "lm_head.weight")):
            assert not parameter.any()
        else:
            rows, columns = parameter.shape
            want = 1.0 if "embed" in name else (min(1.0, rows / columns) / columns) ** 0.5
            assert parameter.detach().std().item() == pytest.approx(want, rel=0.02), name
