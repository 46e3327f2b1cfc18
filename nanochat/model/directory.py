"""A model directory: what `transformers.AutoModelForCausalLM.from_pretrained` opens, and our own engine too."""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.tensor import DTensor

from nanochat.common.errors import UserError
from nanochat.common.files import atomic_path, read_json, save_safetensors, write_json
from nanochat.model.checksums import seal_model, verify_model
from nanochat.model.config import GPTConfig
from nanochat.model.gpt import GPT
from nanochat.tokenizer.chat_template import CHAT_TEMPLATE, TEMPLATE_FILE
from nanochat.tokenizer.tokenizer import Tokenizer

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
BYTES_PER_FILE = 5_000_000_000  # transformers' own limit for long; smaller files are fetched side by side

T = TypeVar("T")


class Job(Protocol):
    """What saving needs to know of the processes that hold a model together."""

    @property
    def is_first(self) -> bool:
        """Whether this process writes for all."""

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make` returns, or raises, on the first process; on every process."""


class _Alone:
    is_first = True

    def from_first(self, make: Callable[[], T]) -> T:
        return make()


ALONE = _Alone()
"""A process that holds its model by itself."""


def hf_config(config: GPTConfig, tokenizer: Tokenizer, dtype: torch.dtype) -> dict[str, Any]:
    """The fields of NanoChatConfig, every one set: its defaults are another model's."""
    end = tokenizer.special_id("<|assistant_end|>")
    return {
        "architectures": ["NanoChatForCausalLM"],
        "model_type": "nanochat",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_heads,
        "max_position_embeddings": config.max_seq_len,
        "hidden_act": "relu2",
        "attention_dropout": 0.0,
        "attention_bias": False,
        "rms_norm_eps": config.rms_norm_eps,
        "initializer_range": 0.02,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "final_logit_softcapping": config.logit_softcap,
        "tie_word_embeddings": False,
        "use_cache": True,
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": end,
        "pad_token_id": end,
        "dtype": str(dtype).removeprefix("torch."),
    }


def weight_files(weights: dict[str, Tensor], dtype: torch.dtype, limit: int) -> dict[str, list[str]]:
    """Which weights go into which file: in their order, at most `limit` bytes of `dtype` a file unless one weight has more."""
    groups: list[list[str]] = [[]]
    filled = 0
    for name, weight in weights.items():
        size = weight.numel() * dtype.itemsize
        if groups[-1] and filled + size > limit:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    if len(groups) == 1:
        return {WEIGHTS_FILE: groups[0]}
    return {f"model-{number:05}-of-{len(groups):05}.safetensors": group for number, group in enumerate(groups, 1)}


def save_model(
    directory: Path,
    model: GPT,
    tokenizer: Tokenizer,
    dtype: torch.dtype,
    card: str,
    job: Job = ALONE,
    bytes_per_file: int = BYTES_PER_FILE,
) -> None:
    """Write a model directory, complete or absent: config, weights in `dtype`, tokenizer, generation settings, model card.

    Every process of a job calls it. Sharded weights are brought together one at a time, and the first process writes them file by
    file: none holds the whole model. An OSError of the first process is raised on all of them.
    """
    weights = model.state_dict()  # not named_parameters: this gives up what sharding has brought together for a forward pass
    files = weight_files(weights, dtype, bytes_per_file)
    with contextlib.ExitStack() as stack:

        def begin() -> Path:
            aside = stack.enter_context(atomic_path(directory))
            aside.mkdir()
            _write_all_but_weights(aside, model.config, tokenizer, dtype, card)
            if len(files) > 1:
                total_size = sum(weight.numel() for weight in weights.values()) * dtype.itemsize
                weight_map = {name: file for file, names in files.items() for name in names}
                write_json(aside / INDEX_FILE, {"metadata": {"total_size": total_size}, "weight_map": weight_map})
            return aside

        aside = job.from_first(begin)
        for file, names in files.items():
            held = {}
            for name in names:
                whole = _whole(weights[name], dtype)
                if job.is_first:
                    held[name] = whole.cpu().contiguous()
            job.from_first(partial(save_safetensors, aside / file, held, metadata={"format": "pt"}))
        job.from_first(partial(seal_model, aside))
        job.from_first(stack.pop_all().close)


def _whole(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """All of a weight in `dtype`, on every process that holds a part of it."""
    weight = weight.detach().to(dtype)
    return weight.full_tensor() if isinstance(weight, DTensor) else weight


def _write_all_but_weights(directory: Path, config: GPTConfig, tokenizer: Tokenizer, dtype: torch.dtype, card: str) -> None:
    fields = hf_config(config, tokenizer, dtype)
    generation = {key: fields[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")} | {"do_sample": True, "temperature": 1.0}
    tokenizer.save(directory, model_max_length=config.max_seq_len)
    write_json(directory / "config.json", fields)
    write_json(directory / "generation_config.json", generation)
    (directory / TEMPLATE_FILE).write_text(CHAT_TEMPLATE, encoding="utf-8")
    (directory / "README.md").write_text(card, encoding="utf-8")


def load_config(directory: Path) -> GPTConfig:
    """The shape of the model in a directory. Raises UserError for a directory that holds no model of this architecture."""
    path = directory / "config.json"
    try:
        value = read_json(path)
        if value["model_type"] != "nanochat":
            raise UserError(f"{path}: model_type is {value['model_type']!r}; only nanochat models can be opened")
        if value.get("num_key_value_heads", value["num_attention_heads"]) != value["num_attention_heads"]:
            raise UserError(
                f"{path}: {value['num_key_value_heads']} key and value heads for {value['num_attention_heads']}; as many are needed"
            )
        return GPTConfig(
            vocab_size=value["vocab_size"],
            max_seq_len=value["max_position_embeddings"],
            num_layers=value["num_hidden_layers"],
            hidden_size=value["hidden_size"],
            num_heads=value["num_attention_heads"],
            intermediate_size=value["intermediate_size"],
            rope_theta=(value.get("rope_parameters") or {}).get("rope_theta", 10_000.0),
            rms_norm_eps=value.get("rms_norm_eps", 1e-6),
            logit_softcap=value.get("final_logit_softcapping", 15.0),
        )
    except FileNotFoundError:
        raise UserError(f"{directory} is no model directory: it has no config.json") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged or not a model's configuration ({error!r})") from None


def each_weight(directory: Path, shapes: dict[str, tuple[int, ...]]) -> Iterator[tuple[str, Callable[[int, int], Tensor]]]:
    """The name of each weight, with what reads its rows from a first one to before a last one; from one weights file or from several.

    Raises UserError when one is not there, cannot be read or has another shape than the one asked for.
    """
    places = dict.fromkeys(shapes, WEIGHTS_FILE)
    index = directory / INDEX_FILE
    if not (directory / WEIGHTS_FILE).exists() and index.exists():
        try:
            weight_map = dict(read_json(index)["weight_map"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{index} is damaged ({error!r})") from None
        for name in shapes:
            if not isinstance(weight_map.get(name), str):
                raise UserError(f"{index} has no tensor {name}, which config.json asks for")
            if Path(weight_map[name]).name != weight_map[name]:
                raise UserError(f"{index}: {weight_map[name]!r} is no file of this directory")
            places[name] = weight_map[name]
    for file in dict.fromkeys(places.values()):
        path = directory / file
        try:
            with safe_open(path, framework="pt") as opened:
                there = set(opened.keys())
                for name, shape in shapes.items():
                    if places[name] != file:
                        continue
                    if name not in there:
                        raise UserError(f"{path} has no tensor {name}, which config.json asks for")
                    rows = opened.get_slice(name)
                    if tuple(rows.get_shape()) != shape:
                        raise UserError(f"{path}: {name} has shape {tuple(rows.get_shape())}, config.json says {shape}")
                    yield name, lambda first, last, rows=rows: rows[first:last]  # type: ignore[misc]
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} is missing or damaged ({error})") from None


def check_belongs(directory: Path, tokenizer: Tokenizer, config: GPTConfig) -> None:
    """Raises UserError when a directory's tokenizer is not its model's."""
    if tokenizer.vocab_size != config.vocab_size:
        raise UserError(f"{directory}: the tokenizer has {tokenizer.vocab_size:,} entries, the model {config.vocab_size:,}")


def load_model(directory: Path, device: torch.device, dtype: torch.dtype = torch.float32) -> tuple[GPT, Tokenizer]:
    """The model of a directory, ready for evaluation, with its tokenizer; its weights are, and it computes, in `dtype` on a device.

    Raises UserError when something is missing, damaged or does not belong together.
    """
    config = load_config(directory)
    verify_model(directory)
    with torch.device("meta"):
        model = GPT(config)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    for _ in each_weight(directory, shapes):  # before memory is taken: a config.json from elsewhere can ask for any amount
        pass
    model = model.to(dtype).to_empty(device=device)
    model.model.init_rotary()
    parameters = dict(model.named_parameters())
    for name, read in each_weight(directory, shapes):
        parameters[name].data.copy_(read(0, parameters[name].size(0)))
    tokenizer = Tokenizer.from_directory(directory)
    check_belongs(directory, tokenizer, config)
    return model.eval().requires_grad_(False), tokenizer
