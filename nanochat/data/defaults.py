"""What `--data` and `--tokenizer` mean when they are not given, or not there."""

from pathlib import Path

from nanochat.common.console import warn
from nanochat.common.errors import UserError
from nanochat.common.paths import base_dir
from nanochat.data.sources import source_of

DEFAULT_DATA = "climbmix"
DEFAULT_TOKENIZER = "climbmix-65536"


def _there(directory: Path, proof: str) -> list[str]:
    """Names of the folders that hold a file like `proof`."""
    return sorted({path.parent.name for path in directory.glob(f"*/{proof}") if not path.parent.name.startswith(".")})


def _choose(flag: str, default: str, there: list[str], how_to_make: str, differs: str) -> str:
    if default in there:
        return default
    if len(there) == 1:
        warn(f"{flag}: {default} is not there, so {there[0]}, the only one, is taken; {differs}")
        return there[0]
    if there:
        raise UserError(f"{flag}: the default, {default}, is not there; choose one of {', '.join(there)}, or make it: {how_to_make}")
    raise UserError(f"{flag}: there is none yet; make it first: {how_to_make}")


def resolve_data(data: str | None) -> str:
    """Short name of the text to use: the one asked for, else climbmix, else the only one that is there.

    Raises UserError when there is none, or several and no choice.
    """
    there = _there(base_dir() / "data", "shard_*.parquet")
    if data is None:
        return _choose("--data", DEFAULT_DATA, there, "python -m scripts.dataset", "the guide's figures are for climbmix")
    name = data if data in there else source_of(data).name
    if name not in there:
        raise UserError(f"--data={data}: that text is not there yet; make it first: python -m scripts.dataset --data {data}")
    return name


def resolve_tokenizer(tokenizer: str | None) -> str:
    """Name of the tokenizer to use: the one asked for, else climbmix-65536, else the only one that is there.

    Raises UserError when there is none, or several and no choice.
    """
    there = _there(base_dir() / "tokenizer", "ranks.tiktoken")
    if tokenizer and tokenizer.startswith("path:"):  # the text as --data names it, and the entries
        data, _, vocab_size = tokenizer.rpartition("-")
        tokenizer = f"{source_of(data).name}-{vocab_size}"
    if tokenizer is None:
        return _choose(
            "--tokenizer",
            DEFAULT_TOKENIZER,
            there,
            "python -m scripts.tok_train",
            "its vocabulary makes a model of other sizes than the guide's",
        )
    if tokenizer not in there:
        known = f"; there are {', '.join(there)}" if there else ""
        raise UserError(f"--tokenizer={tokenizer}: no such tokenizer{known}; make one: python -m scripts.tok_train")
    return tokenizer
