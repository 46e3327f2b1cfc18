"""Token shards on disk: uint16 little-endian ids in `shard_00000.bin` …, described by `index.json`. Reading needs numpy alone."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nanochat.common.checksums import wrong_files
from nanochat.common.errors import UserError
from nanochat.common.files import read_json

INDEX_FILE = "index.json"
DTYPE = np.dtype("<u2")


@dataclass(frozen=True)
class TokenShard:
    """One file of token ids, documents one after the other, each begun by `<|bos|>`."""

    name: str
    """file name in the directory of the index"""
    split: str
    """train or val"""
    documents: int
    """documents in it"""
    tokens: int
    """token ids in it, a bos for each document among them"""
    bytes: int
    """UTF-8 bytes of the text"""
    sha256: str
    """SHA-256 of the file"""
    source: str
    """text shard that it was made from: its file name and a fingerprint"""


@dataclass(frozen=True)
class TokenIndex:
    """The token shards of one text under one tokenizer."""

    directory: Path
    """where the shards are"""
    data: str
    """short name of the text"""
    tokenizer: str
    """name of the tokenizer"""
    tokenizer_hash: str
    """hash of the tokenizer"""
    vocab_size: int
    """entries of the tokenizer, special tokens among them"""
    shards: tuple[TokenShard, ...]
    """the finished shards, by name"""

    @property
    def remedy(self) -> str:
        """The command that makes missing shards."""
        return f"python -m scripts.tok_encode --data {self.data} --tokenizer {self.tokenizer}"


def read_index(directory: Path) -> TokenIndex:
    """The index of a directory of token shards. Raises UserError, with the command to give, when missing or damaged."""
    path = directory / INDEX_FILE
    if not path.is_file():
        raise UserError(f"no token shards at {directory}: make them with `python -m scripts.tok_encode`")
    try:
        value = read_json(path)
        shards = tuple(TokenShard(**shard) for shard in value["shards"])
        return TokenIndex(directory, value["data"], value["tokenizer"], value["tokenizer_hash"], int(value["vocab_size"]), shards)
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} is damaged: delete it and give `python -m scripts.tok_encode` again") from None


def open_shard(index: TokenIndex, shard: TokenShard) -> np.memmap:
    """The ids of a shard, uint16 of shape (tokens,), mapped from disk. Raises UserError when its size is not what the index says."""
    path = index.directory / shard.name
    size, expected = path.stat().st_size if path.is_file() else -1, shard.tokens * DTYPE.itemsize
    if size != expected:
        seen = f"has {size:,} bytes, its index says {expected:,}" if size >= 0 else "is not there, but its index names it"
        raise UserError(f"{path} {seen}: {_made_again(index)}")
    return np.memmap(path, dtype=DTYPE, mode="r", shape=(shard.tokens,))


def damaged_shards(index: TokenIndex, shards: Iterable[TokenShard]) -> dict[str, str]:
    """Those of the shards whose SHA-256 is not the one in the index, with what is wrong; read only where they changed since."""
    return wrong_files(index.directory, {shard.name: shard.sha256 for shard in shards})


def verify_shards(index: TokenIndex) -> None:
    """Raise UserError, with the command to give, when a shard of the index is not there or not as it was written."""
    for name, reason in damaged_shards(index, index.shards).items():
        raise UserError(f"{index.directory / name} is damaged, {reason}: {_made_again(index)}")


def _made_again(index: TokenIndex) -> str:
    return f"give `{index.remedy}`, which makes it again"
