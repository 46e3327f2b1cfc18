"""Sample number i of a run, as a pure function of the seed, i and the frozen manifest."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanochat.common.errors import UserError
from nanochat.data.permutation import Permutation
from nanochat.data.token_shards import TokenIndex, open_shard, read_index


@dataclass(frozen=True)
class Manifest:
    """The token shards of a run, frozen when it starts: with the seed it fixes every sample."""

    data: str
    """Short name of the text."""
    tokenizer: str
    """Name of the tokenizer."""
    tokenizer_hash: str
    """Hash of the tokenizer."""
    seq_len: int
    """Tokens of a sample that are predicted."""
    seed: int
    """Seed of the order."""
    shards: tuple[tuple[str, int, str], ...]
    """Name, tokens and SHA-256 of each shard, in order."""

    @classmethod
    def of(cls, index: TokenIndex, split: str, seq_len: int, seed: int) -> "Manifest":
        """The manifest of all shards of a split ("train" or "val") that are there now.

        Raises UserError when no shard holds one sequence.
        """
        shards = tuple((s.name, s.tokens, s.sha256) for s in index.shards if s.split == split)
        manifest = cls(index.data, index.tokenizer, index.tokenizer_hash, seq_len, seed, shards)
        longest = max((tokens for _, tokens, _ in shards), default=0)
        if longest < seq_len + 1:
            raise UserError(
                f"--max_seq_len={seq_len}: the longest {split} shard of {index.data} holds {longest:,} tokens; "
                f"a sequence needs {seq_len + 1:,}: "
                f"choose {max(longest - 1, 1):,} or less, or give more text"
            )
        return manifest

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Manifest":
        """The manifest that `to_json` gave."""
        return cls(**{**value, "shards": tuple((name, tokens, sha256) for name, tokens, sha256 in value["shards"])})

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


class Samples:
    """Random access to the samples of a manifest: windows of seq_len + 1 tokens, in an order new in each epoch."""

    def __init__(self, manifest: Manifest, directory: Path, shuffle: bool = True):
        self.manifest, self.shuffle = manifest, shuffle
        index = read_index(directory)
        present = {shard.name: shard for shard in index.shards}
        self.shards: list[NDArray[np.uint16]] = []
        """The ids of each shard."""
        for name, _, sha256 in manifest.shards:
            if name not in present or present[name].sha256 != sha256:
                raise UserError(
                    f"{directory / name} is not the token shard that this run began with: "
                    "put it back, or start a new run under another --model_tag"
                )
            self.shards.append(np.asarray(open_shard(index, present[name])))  # a plain view: slicing a memmap is slow
        rows = np.array([max(0, (tokens - 1) // manifest.seq_len) for _, tokens, _ in manifest.shards])
        self._ends = np.cumsum(rows)
        self.per_epoch = int(self._ends[-1])
        self._permutation: tuple[int, Permutation] | None = None

    def _places(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """The row of the concatenated shards for each sample number."""
        if not self.shuffle:
            return numbers % self.per_epoch
        places = np.empty_like(numbers)
        epochs = numbers // self.per_epoch
        for epoch in np.unique(epochs):
            if self._permutation is None or self._permutation[0] != epoch:
                self._permutation = (int(epoch), Permutation(self.per_epoch, self.manifest.seed, int(epoch)))
            chosen = epochs == epoch
            places[chosen] = self._permutation[1](numbers[chosen] % self.per_epoch)
        return places

    def __getitem__(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Samples by their numbers (n,), counted from 0 through all epochs: (n, seq_len + 1) int64."""
        places = self._places(numbers)
        shards = np.searchsorted(self._ends, places, side="right")
        length = self.manifest.seq_len
        out = np.empty((len(numbers), length + 1), dtype=np.int64)
        for row, (place, shard) in enumerate(zip(places.tolist(), shards.tolist(), strict=True)):
            start = (place - (int(self._ends[shard - 1]) if shard else 0)) * length
            out[row] = self.shards[shard][start : start + length + 1]
        return out

    def read(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Samples by their numbers (n,): ids and targets, each (n, seq_len) int64."""
        rows = self[numbers]
        return rows[:, :-1], rows[:, 1:]

    def supervised(self, first: int, count: int) -> int:
        """Targets in `count` samples from number `first` on: all of their tokens."""
        return count * self.manifest.seq_len
