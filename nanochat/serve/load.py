"""Opening the model that somebody wants to talk to."""

from pathlib import Path

import torch

from nanochat.common import hub
from nanochat.common.console import is_terminal, say, warn
from nanochat.common.download import WRONG_CONTENTS
from nanochat.common.errors import UserError
from nanochat.common.files import full_disk
from nanochat.common.paths import named_path
from nanochat.engine.linear import for_decoding
from nanochat.model.directory import load_model
from nanochat.model.find import find_model
from nanochat.model.gpt import GPT
from nanochat.parallel.compiling import compiler_missing
from nanochat.parallel.precision import evaluation_dtype
from nanochat.serve.settings import STAGES, TalkSettings
from nanochat.tokenizer.tokenizer import Tokenizer

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
FILES = ["*.json", "*.jinja", "*.safetensors", "*.tiktoken", "*.txt"]


def find_directory(s: TalkSettings) -> tuple[Path, str]:
    """The directory of the model that is meant, and what it is called. Raises UserError, saying what there is, when there is none."""
    if not s.model:
        directory = find_model((s.source,) if s.source else STAGES, s.model_tag)
        return directory, f"{directory.parent.parent.name}-{directory.parent.name}"
    directory = named_path(s.model)
    if directory.is_dir():
        return directory, directory.resolve().name
    name, _, revision = s.model.partition("@")
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UserError(
            f"--model={s.model}: there is no such directory, and it is no id of a model on the hub (OWNER/NAME, OWNER/NAME@REVISION)"
        )
    return _from_hub(name, revision), s.model


def _from_hub(name: str, revision: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
    from huggingface_hub.utils import disable_progress_bars

    if not is_terminal():
        disable_progress_bars()
    try:
        for _ in range(WRONG_CONTENTS):
            directory = Path(snapshot_download(name, revision=revision or None, allow_patterns=FILES))
            if not (wrong := hub.wrong_in_cache(directory.iterdir())):
                break
            for path in wrong:
                warn(f"{path} is not what the hub publishes: it is fetched again")
                hub.forget(path)
        else:
            raise UserError(f"--model={name}: {wrong[0].name} arrived wrong {WRONG_CONTENTS} times")
    except RepositoryNotFoundError:
        raise UserError(f"--model={name}: the hub has no such model, or does not let you read it (HF_TOKEN)") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        if full_disk(error):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"--model={name} cannot be fetched: {reason}") from None
    if not (directory / "config.json").is_file():
        raise UserError(
            f"--model={name} is no model directory: it has no config.json. If it holds nanochat's own files (model_000650.pt), download "
            "them and turn them by python -m scripts.export --from_nanochat DIR, or name a revision that has one (OWNER/NAME@REVISION)"
        )
    return directory


def open_model(s: TalkSettings, device: torch.device) -> tuple[GPT, Tokenizer, str]:
    """The model, made fast for answering, its tokenizer and its name. Raises UserError for what is no model."""
    directory, name = find_directory(s)
    model, tokenizer = load_model(directory, device, DTYPES.get(s.precision) or evaluation_dtype(device))
    return for_decoding(model, s.int8), tokenizer, name


def can_compile(device: torch.device) -> bool:
    """Whether this machine can compile; says in one line what it costs, or what is missing."""
    if missing := compiler_missing(device):
        say(f"compile: off, {missing}; answers come more slowly")
    else:
        say("compiling: a few seconds, more the first time (--no-compile leaves it out)")
    return not missing
