"""Checkpoints of the nanochat of autumn 2025, `model_STEP.pt`, `meta_STEP.json` and `tokenizer.pkl`, read without trusting a pickle."""

import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanochat.common.errors import UserError
from nanochat.common.files import read_json
from nanochat.model.config import GPTConfig
from nanochat.model.directory import check_belongs
from nanochat.model.gpt import GPT
from nanochat.tokenizer.special import SPECIAL_TOKENS, SPLIT_PATTERN
from nanochat.tokenizer.tokenizer import Tokenizer

TOKENIZER_FILE = "tokenizer.pkl"
NAMES = (
    (r"transformer\.wte\.weight", "model.embed_tokens.weight"),
    (r"transformer\.h\.(\d+)\.attn\.c_([qkv])\.weight", r"model.layers.\1.self_attn.\2_proj.weight"),
    (r"transformer\.h\.(\d+)\.attn\.c_proj\.weight", r"model.layers.\1.self_attn.o_proj.weight"),
    (r"transformer\.h\.(\d+)\.mlp\.c_fc\.weight", r"model.layers.\1.mlp.fc1.weight"),
    (r"transformer\.h\.(\d+)\.mlp\.c_proj\.weight", r"model.layers.\1.mlp.fc2.weight"),
    (r"lm_head\.weight", "lm_head.weight"),
)


@dataclass(frozen=True)
class NanochatCheckpoint:
    """One checkpoint of nanochat's."""

    weights: Path
    step: int
    tokenizer: Path

    @property
    def meta(self) -> Path:
        """What nanochat wrote down of it."""
        return self.weights.with_name(f"meta_{self.step:06d}.json")


def find_checkpoint(directory: Path, step: int = -1) -> NanochatCheckpoint:
    """The checkpoint of a step in a directory, the last by default. Its tokenizer stands beside it, or where nanochat keeps it.

    Raises UserError that says what is missing.
    """
    found = {int(name[1]): path for path in directory.glob("model_*.pt") if (name := re.fullmatch(r"model_(\d+)\.pt", path.name))}
    if not found:
        raise UserError(f"{directory} holds no checkpoint of nanochat's (model_000650.pt, say)")
    if step >= 0 and step not in found:
        raise UserError(f"--step={step}: {directory} has the steps {', '.join(map(str, sorted(found)))}")
    step = step if step >= 0 else max(found)
    places = [directory / TOKENIZER_FILE, *(up / "tokenizer" / TOKENIZER_FILE for up in (directory, *directory.resolve().parents[:2]))]
    for place in places:
        if place.is_file():
            return NanochatCheckpoint(found[step], step, place)
    raise UserError(f"{directory} has no {TOKENIZER_FILE}, and there is none in a directory named tokenizer two levels above: put it there")


class _OnlyAnEncoding(pickle.Unpickler):
    """Reads plain values and what a tiktoken encoding is made of; nothing of tiktoken's, or anybody's, is called."""

    class Held:
        """Stands in for the encoding; takes up its state."""

        state: dict[str, Any]

        def __setstate__(self, state: dict[str, Any]) -> None:
            self.state = state

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("tiktoken.core", "Encoding"):
            return self.Held
        raise UserError(f"it asks for {module}.{name}, which no tokenizer needs: do not open it with anything")


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in nanochat's tokenizer.pkl. Raises UserError for one that is damaged, of another kind, or no tokenizer."""
    try:
        with path.open("rb") as file:
            state = _OnlyAnEncoding(file).load().state
        ranks, special, pattern = state["mergeable_ranks"], state["special_tokens"], state["pat_str"]
        tokenizer = Tokenizer.from_ranks({bytes(token): int(rank) for token, rank in ranks.items()})
    except UserError as error:
        raise UserError(f"{path} cannot be used: {error}") from None
    except Exception as error:  # whatever a broken pickle leads to
        raise UserError(f"{path} is damaged or no tokenizer of nanochat's ({type(error).__name__})") from None
    if pattern != SPLIT_PATTERN:
        raise UserError(f"{path} cannot be used: it splits text otherwise than nanochat of autumn 2025 does")
    if special != tokenizer.special_tokens:
        raise UserError(f"{path} cannot be used: its special tokens are not the nine of nanochat ({', '.join(SPECIAL_TOKENS)})")
    return tokenizer


def read_checkpoint(found: NanochatCheckpoint) -> tuple[GPT, Tokenizer]:
    """The model and its tokenizer, in float32 on the CPU. Raises UserError for what is damaged or of another architecture."""
    tokenizer = read_tokenizer(found.tokenizer)
    config = _config(found.meta)
    check_belongs(found.weights.parent, tokenizer, config)
    with torch.device("meta"):
        model = GPT(config)
    weights = _weights(found.weights, {name: tuple(weight.shape) for name, weight in model.state_dict().items()})
    model.load_state_dict(weights, assign=True)
    model.model.init_rotary()
    return model.eval().requires_grad_(False), tokenizer


def _config(path: Path) -> GPTConfig:
    try:
        value = read_json(path)["model_config"]
        heads, d = value["n_head"], value["n_embd"]
        if value.get("n_kv_head", heads) != heads:
            raise UserError(f"{path}: {value['n_kv_head']} key and value heads for {heads}; as many are needed")
        return GPTConfig(value["vocab_size"], value["sequence_len"], value["n_layer"], d, heads, 4 * d)
    except FileNotFoundError:
        raise UserError(f"{path} is not there: it tells the sizes of the model") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged or not nanochat's ({error!r})") from None


def _weights(path: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        named = {_name(str(name).removeprefix("_orig_mod.")): tensor for name, tensor in state.items()}
        if not all(isinstance(tensor, Tensor) for tensor in named.values()):
            raise UserError("it holds more than weights")
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:  # torch raises many kinds for files that are not its own
        raise UserError(f"{path} is damaged or holds more than weights ({type(error).__name__})") from None
    for name, shape in shapes.items():
        if name not in named:
            raise UserError(f"{path} has no {name}, which its meta file asks for")
        if tuple(named[name].shape) != shape:
            raise UserError(f"{path}: {name} has shape {tuple(named[name].shape)}, its meta file says {shape}")
    if more := sorted(set(named) - set(shapes)):
        raise UserError(f"{path} has more layers than its meta file says ({more[0]})")
    return {name: tensor.float() for name, tensor in named.items()}


def _name(theirs: str) -> str:
    for pattern, ours in NAMES:
        if found := re.fullmatch(pattern, theirs):
            return found.expand(ours)
    raise UserError(f"{theirs} belongs to a later architecture than that of autumn 2025, which transformers and this project open")
