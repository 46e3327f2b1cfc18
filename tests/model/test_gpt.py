"""The model against transformers' own NanoChat, and its cache against a pass over everything."""

import json
from pathlib import Path

import pytest
import torch

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
    with torch.no_grad():
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
