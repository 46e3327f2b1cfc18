"""Where things lie: everything is under one base directory."""

import os
from pathlib import Path

from nanochat.common.errors import UserError


def named_path(text: str) -> Path:
    """A path that a person has named, with `~` put in full. Raises UserError for a user who does not exist."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise UserError(f"{text}: there is no such user") from None


def base_path() -> Path:
    """`$NANOCHAT_BASE_DIR`, by default `~/.cache/nanochat`, whether it is there or not."""
    return named_path(os.environ.get("NANOCHAT_BASE_DIR") or "~/.cache/nanochat").absolute()


def base_dir() -> Path:
    """The same; made when it is not there. Raises UserError when it cannot be made or written."""
    path = base_path()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the base directory {path} ({error.strerror}); set NANOCHAT_BASE_DIR to another") from error
    if not os.access(path, os.W_OK):
        raise UserError(f"the base directory {path} cannot be written; set NANOCHAT_BASE_DIR to another")
    return path


def data_dir(data: str) -> Path:
    """Directory of the text shards of a source, by its short name (`python`, `climbmix`, …)."""
    return base_dir() / "data" / data


def tokenizer_dir(name: str) -> Path:
    """Directory of a tokenizer, by its name (`climbmix-65536`)."""
    return base_dir() / "tokenizer" / name


def tokens_dir(data: str, tokenizer_hash: str) -> Path:
    """Directory of the token shards of a source under one tokenizer."""
    return base_dir() / "tokens" / f"{data}-{tokenizer_hash}"


def run_dir(model_tag: str) -> Path:
    """Directory of one run: a directory a stage, and the report."""
    return base_dir() / "runs" / model_tag
