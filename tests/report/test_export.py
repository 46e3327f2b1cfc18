"""Models for others: nanochat's older checkpoints turned copied with its card, a repository on the hub filled and opened."""

import json
import os
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import tiktoken
import torch

from nanochat.model.directory import load_model
from nanochat.tokenizer.special import SPLIT_PATTERN
from tests.conftest import World, wrong_request

CPU = torch.device("cpu")
THEIRS = {"q_proj": "c_q", "k_proj": "c_k", "v_proj": "c_v", "o_proj": "c_proj"}


def theirs(ours: str) -> str:
    """What nanochat calls a weight."""
    ours = ours.replace("model.embed_tokens", "transformer.wte").replace("model.layers", "transformer.h")
    ours = re.sub(r"self_attn\.(\w+)", lambda found: f"attn.{THEIRS[found[1]]}", ours)
    return ours.replace("mlp.fc1", "mlp.c_fc").replace("mlp.fc2", "mlp.c_proj")


@pytest.fixture
def old(trained: Path, tmp_path: Path) -> Path:
    """The trained model as nanochat would have left it, tokenizer and all."""
    model, tokenizer = load_model(trained, CPU)
    directory = tmp_path / "base_checkpoints/d2"
    directory.mkdir(parents=True)
    state = {f"_orig_mod.{theirs(name)}": weight for name, weight in model.state_dict().items()}
    torch.save({name: torch.zeros_like(weight) for name, weight in state.items()}, directory / "model_000010.pt")
    torch.save(state, directory / "model_000030.pt")
    c = model.config
    shape = {"sequence_len": c.max_seq_len, "vocab_size": c.vocab_size, "n_layer": 2, "n_head": c.num_heads, "n_kv_head": c.num_heads}
    for step in (10, 30):
        (directory / f"meta_{step:06d}.json").write_text(json.dumps({"step": step, "model_config": {**shape, "n_embd": c.hidden_size}}))
    (tmp_path / "tokenizer").mkdir()
    encoding = tiktoken.Encoding(
        "rustbpe", pat_str=SPLIT_PATTERN, mergeable_ranks=tokenizer.mergeable_ranks, special_tokens=tokenizer.special_tokens
    )
    (tmp_path / "tokenizer/tokenizer.pkl").write_bytes(pickle.dumps(encoding))
    return directory


def test_an_older_checkpoint_becomes_a_directory_that_transformers_opens(world: World, trained: Path, old: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    out = tmp_path / "turned"
    finished = world.run("scripts.export", f"--from_nanochat={old}", f"--output={out}", "--precision=fp32", "--license=mit")
    assert finished.returncode == 0, finished.stderr
    model, tokenizer = load_model(trained, CPU)
    same, _ = load_model(out, CPU)
    ids = torch.tensor([tokenizer.encode("The value of the object")])
    with torch.no_grad():
        assert torch.equal(same(ids), model(ids))
        opened: Any = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
        assert torch.allclose(opened(ids).logits, model(ids), atol=1e-4)
    card = (out / "README.md").read_text()
    assert card.startswith("---\n")
    assert "license: mit" in card
    assert "step 30" in card
    again = world.run("scripts.export", f"--model={out}", f"--output={tmp_path / 'again'}")
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "again/README.md").read_text() == card
    assert (out / "model.safetensors").stat().st_mode & 0o777 == (out / "config.json").stat().st_mode & 0o777
    earlier = world.run("scripts.export", f"--from_nanochat={old}", f"--output={tmp_path / 'earlier'}", "--step=10")
    assert earlier.returncode == 0, earlier.stderr
    assert float(next(iter(load_model(tmp_path / "earlier", CPU)[0].parameters())).abs().max()) == 0


class Evil:
    """A pickle that runs a command where it is trusted."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.marker}'",)


def test_pickles_are_not_trusted_and_faults_are_named(world: World, old: Path, tmp_path: Path) -> None:
    marker, pkl = tmp_path / "ran", tmp_path / "tokenizer/tokenizer.pkl"
    good, newest = pkl.read_bytes(), old / "model_000030.pt"

    def refused(*words: str) -> None:
        wrong_request(world.run("scripts.export", f"--from_nanochat={old}", f"--output={tmp_path / 'out'}"), *words)
        assert not marker.exists()
        assert not (tmp_path / "out").exists()

    pkl.write_bytes(pickle.dumps(Evil(marker)))
    refused("tokenizer.pkl", "system")
    pkl.write_bytes(good[: len(good) // 2])
    refused("tokenizer.pkl", "damaged")
    pkl.write_bytes(pickle.dumps({"a": 1}))
    refused("tokenizer.pkl", "no tokenizer")
    pkl.unlink()
    refused("tokenizer.pkl")
    pkl.write_bytes(good)
    state = torch.load(newest, weights_only=True)
    torch.save(Evil(marker), newest)
    refused("model_000030.pt", "more than weights")
    torch.save({**state, "_orig_mod.transformer.h.0.attn.ve_gate.weight": torch.zeros(2)}, newest)
    refused("ve_gate", "later architecture")
    torch.save({name: tensor for name, tensor in state.items() if "wte" not in name}, newest)
    refused("embed_tokens")
    torch.save({name: tensor[:5] if "wte" in name else tensor for name, tensor in state.items()}, newest)
    refused("embed_tokens", "shape")
    (old / "meta_000030.json").write_text("{}")
    refused("meta_000030.json")


def test_wrong_requests(world: World, trained: Path, tmp_path: Path) -> None:
    for args, words in (
        ((), ("--output", "--push_to_hub")),
        ((f"--output={tmp_path}",), ("there already",)),
        (("--push_to_hub=name",), ("OWNER/NAME",)),
        ((f"--output={tmp_path / 'x'}", f"--model={tmp_path}"), ("config.json",)),
        ((f"--output={__file__}/x", f"--model={trained}"), ("--output", "cannot be written")),
        ((f"--output={tmp_path / 'x'}", f"--model={trained}", "--source=base"), ("one of them",)),
        ((f"--output={tmp_path / 'x'}", f"--from_nanochat={trained}"), ("no checkpoint",)),
    ):
        wrong_request(world.run("scripts.export", *args), *words)
        assert not (tmp_path / "x").exists()
