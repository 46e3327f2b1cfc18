"""A model directory: what `transformers.AutoModelForCausalLM.from_pretrained` opens, and our own engine too."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from nanochat.common.errors import UserError
from nanochat.common.files import atomic_path, read_json, save_safetensors, write_json
from nanochat.model.config import GPTConfig
from nanochat.model.gpt import GPT
from nanochat.tokenizer.tokenizer import Tokenizer

WEIGHTS_FILE = "model.safetensors"


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


def save_model(directory: Path, model: GPT, tokenizer: Tokenizer, dtype: torch.dtype, card: str) -> None:
    """Write a model directory, complete or absent: config, weights in `dtype`, tokenizer, generation settings, model card."""
    config = hf_config(model.config, tokenizer, dtype)
    generation = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")} | {"do_sample": True, "temperature": 1.0}
    with atomic_path(directory) as aside:
        aside.mkdir()
        weights = {name: parameter.detach().to("cpu", dtype).contiguous() for name, parameter in model.named_parameters()}
        save_safetensors(aside / WEIGHTS_FILE, weights, metadata={"format": "pt"})
        tokenizer.save(aside, model_max_length=model.config.max_seq_len)
        write_json(aside / "config.json", config)
        write_json(aside / "generation_config.json", generation)
        (aside / "README.md").write_text(card, encoding="utf-8")


def load_config(directory: Path) -> GPTConfig:
    """The shape of the model in a directory. Raises UserError for a directory that holds no model of this architecture."""
    path = directory / "config.json"
    try:
        value = read_json(path)
        if value["model_type"] != "nanochat":
            raise UserError(f"{path}: model_type is {value['model_type']!r}; only nanochat models can be opened")
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
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged or not a model's configuration ({error!r})") from None


def load_model(directory: Path, device: torch.device, dtype: torch.dtype = torch.float32) -> tuple[GPT, Tokenizer]:
    """The model of a directory, in `dtype` on a device and ready for evaluation, with its tokenizer.

    Raises UserError when something is missing, damaged or does not belong together.
    """
    config = load_config(directory)
    with torch.device("meta"):
        model = GPT(config)
    model = model.to(dtype).to_empty(device=device)
    model.model.init_rotary()
    try:
        with safe_open(directory / WEIGHTS_FILE, framework="pt") as file:
            names = set(file.keys())
            for name, parameter in model.named_parameters():
                if name not in names:
                    raise UserError(f"{directory / WEIGHTS_FILE} has no tensor {name}, which config.json asks for")
                value = file.get_tensor(name)
                if value.shape != parameter.shape:
                    raise UserError(
                        f"{directory / WEIGHTS_FILE}: {name} has shape {tuple(value.shape)}, config.json says {tuple(parameter.shape)}"
                    )
                parameter.data.copy_(value)
    except (FileNotFoundError, SafetensorError) as error:
        raise UserError(f"{directory / WEIGHTS_FILE} is missing or damaged ({error})") from None
    tokenizer = Tokenizer.from_directory(directory)
    if tokenizer.vocab_size != config.vocab_size:
        raise UserError(f"{directory}: the tokenizer has {tokenizer.vocab_size:,} entries, the model {config.vocab_size:,}")
    return model.eval().requires_grad_(False), tokenizer
