"""Text to token ids and back."""

import base64
import binascii
import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from nanochat.common.errors import UserError
from nanochat.common.files import atomic_path, read_json, write_json
from nanochat.tokenizer import hf
from nanochat.tokenizer.special import MAX_VOCAB_SIZE, SPECIAL_TOKENS, SPLIT_PATTERN

RANKS_FILE = "ranks.tiktoken"


class Tokenizer:
    """Byte-level BPE over the ranks, followed by the nine special tokens.

    Encoding never gives a special token: where text spells one, that is ordinary text. Code that wants a special
    token puts its id there (`bos_id`, `special_id`).
    """

    def __init__(self, mergeable_ranks: dict[bytes, int]):
        import tiktoken

        if sorted(mergeable_ranks.values()) != list(range(len(mergeable_ranks))):
            raise UserError(f"the {len(mergeable_ranks):,} ranks of the tokenizer are not 0, 1, 2, … without gaps")
        if missing := [byte for byte in range(256) if bytes([byte]) not in mergeable_ranks]:
            raise UserError(f"the tokenizer has no entry for {len(missing)} of the 256 bytes (the first is {missing[0]})")
        self.vocab_size = len(mergeable_ranks) + len(SPECIAL_TOKENS)
        if self.vocab_size > MAX_VOCAB_SIZE:
            raise UserError(f"a vocabulary of {self.vocab_size:,} does not fit the 16 bits of a token shard: at most {MAX_VOCAB_SIZE:,}")
        self.mergeable_ranks = mergeable_ranks
        self.special_tokens = {name: len(mergeable_ranks) + i for i, name in enumerate(SPECIAL_TOKENS)}
        self.encoding: Any = tiktoken.Encoding(
            "nanochat", pat_str=SPLIT_PATTERN, mergeable_ranks=mergeable_ranks, special_tokens=self.special_tokens
        )

    @classmethod
    def from_ranks(cls, mergeable_ranks: dict[bytes, int]) -> Self:
        """A tokenizer from its BPE entries and their ranks (0, 1, 2, …; every single byte is among them).

        Raises UserError for ranks with gaps and for more entries than uint16 can tell apart.
        """
        return cls(mergeable_ranks)

    @classmethod
    def from_directory(cls, path: Path) -> Self:
        """The tokenizer saved in a directory (a tokenizer's or a model's): ours, or the tokenizer.json of a nanochat model from elsewhere.

        Raises UserError, naming the file and what to do, when it is missing, damaged or another kind of tokenizer.
        """
        ranks_path = path / RANKS_FILE
        if not ranks_path.is_file() and (path / hf.TOKENIZER_FILE).is_file():
            try:
                return cls(hf.ranks_of(read_json(path / hf.TOKENIZER_FILE)))
            except (ValueError, UserError) as error:
                raise UserError(f"{path / hf.TOKENIZER_FILE} cannot be used: {error}") from None
        if not ranks_path.is_file():
            raise UserError(f"no tokenizer at {path} ({RANKS_FILE} is not there); python -m scripts.tok_train makes one")
        remedy = "put back a whole copy, or, where scripts.tok_train made it, remove its directory and train it again"
        try:
            tokenizer = cls(_parse_ranks(ranks_path.read_bytes()))
        except (ValueError, UserError) as error:
            raise UserError(f"{ranks_path} is damaged ({error}): {remedy}") from None
        try:
            expected = read_json(path / hf.CONFIG_FILE)[hf.HASH_KEY]
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f"{path / hf.CONFIG_FILE} is missing or damaged: {remedy}") from None
        if tokenizer.hash != expected:
            raise UserError(f"{ranks_path} is damaged: its hash is {tokenizer.hash}, {hf.CONFIG_FILE} says {expected}; {remedy}")
        return tokenizer

    def save(self, directory: Path, model_max_length: int | None = None) -> None:
        """Write the tokenizer's files into a directory (made when not there), each complete or absent.

        `model_max_length`: the most tokens that the model beside it takes, for transformers.
        """
        directory.mkdir(parents=True, exist_ok=True)
        write_json(directory / hf.TOKENIZER_FILE, hf.tokenizer_json(self.mergeable_ranks, self.special_tokens))
        write_json(directory / hf.CONFIG_FILE, hf.tokenizer_config(self.hash, model_max_length))
        with atomic_path(directory / RANKS_FILE) as aside:
            aside.write_bytes(self._ranks_text())

    def _ranks_text(self) -> bytes:
        ordered = sorted(self.mergeable_ranks.items(), key=lambda item: item[1])
        return b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ordered)

    @cached_property
    def hash(self) -> str:
        """12 hexadecimal digits that tell this tokenizer from any that encodes otherwise."""
        identity = "\n".join([SPLIT_PATTERN, *SPECIAL_TOKENS]).encode() + b"\n" + self._ranks_text()
        return hashlib.sha256(identity).hexdigest()[:12]

    @property
    def bos_id(self) -> int:
        """The id of `<|bos|>`, which starts every document."""
        return self.special_tokens["<|bos|>"]

    def special_id(self, name: str) -> int:
        """The id of a special token, such as `<|assistant_end|>`. Raises KeyError when there is none of that name."""
        return self.special_tokens[name]

    def encode_to_numpy(self, text: str) -> np.ndarray:
        """The token ids of plain text, as uint32 of shape (tokens,). A lone surrogate becomes U+FFFD."""
        try:
            ids: np.ndarray = self.encoding.encode_to_numpy(text, disallowed_special=())
        except UnicodeEncodeError:
            return self.encode_to_numpy(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
        except ValueError:
            # The pattern's look-ahead backtracks, and a run of a million spaces outgrows its stack: encode halves.
            middle = len(text) // 2
            return np.concatenate([self.encode_to_numpy(text[:middle]), self.encode_to_numpy(text[middle:])])
        return ids

    def encode(self, text: str) -> list[int]:
        """The token ids of plain text. The spelling of a special token in it is ordinary text too."""
        ids: list[int] = self.encode_to_numpy(text).tolist()
        return ids

    def encode_batch(self, texts: Sequence[str], num_threads: int = 8) -> list[list[int]]:
        """The token ids of each text, encoded by `num_threads` threads."""
        with ThreadPoolExecutor(num_threads) as pool:
            return list(pool.map(self.encode, texts))

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The bytes that the ids stand for; a special token gives its spelling. Raises KeyError for an id that is none."""
        decoded: bytes = self.encoding.decode_bytes(ids)
        return decoded

    def decode(self, ids: Sequence[int]) -> str:
        """The text that the ids stand for; bytes that are no UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def token_bytes(self) -> np.ndarray:
        """How many UTF-8 bytes each id stands for, int32 of shape (vocab_size,); 0 for special tokens, which are no text."""
        counts = np.zeros(self.vocab_size, dtype=np.int32)
        for token, rank in self.mergeable_ranks.items():
            counts[rank] = len(token)
        return counts


def _parse_ranks(text: bytes) -> dict[bytes, int]:
    """Ranks from tiktoken's text format: a base64 entry and its rank per line. Raises ValueError naming the line."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise ValueError(f"line {number} is not an entry and its rank") from None
    return ranks
