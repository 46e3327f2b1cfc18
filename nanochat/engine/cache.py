"""Keys and values of the rows in work, in memory that follows what they hold."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.model.config import GPTConfig

LEAST = 256  # tokens of the smallest places


@dataclass
class Bucket:
    """Rows of like length in one allocation, place by place."""

    length: int
    """Tokens that a place holds."""
    rows: list[int] = field(default_factory=list)
    """Names of the rows."""
    lengths: list[int] = field(default_factory=list)
    """Tokens that each of them holds."""
    store: Tensor | None = None
    """(layers, 2, places, heads, length, head_dim): keys and values."""

    def resize(self, config: GPTConfig, like: Tensor) -> None:
        """Have places for the rows: twice as many when there are too few, fewer when most are empty."""
        have, wanted = 0 if self.store is None else self.store.size(2), len(self.rows)
        size = 1 << (wanted - 1).bit_length() if wanted else 0
        if size <= have <= 2 * size:
            return
        old, self.store = self.store, None
        if size:
            shape = (config.num_layers, 2, size, config.num_heads, self.length, config.head_dim)
            self.store = torch.zeros(shape, device=like.device, dtype=like.dtype)  # zeros: what is masked must not be NaN either
            if old is not None:
                kept = min(have, size)
                self.store[:, :, :kept] = old[:, :, :kept]

    def put(self, row: int, length: int) -> int:
        """Take the next place; returns its number."""
        self.rows.append(row)
        self.lengths.append(length)
        return len(self.rows) - 1

    def remove(self, place: int) -> None:
        """Free a place; the last row takes it."""
        last = len(self.rows) - 1
        if place != last:
            assert self.store is not None
            self.store[:, :, place] = self.store[:, :, last]
            self.rows[place], self.lengths[place] = self.rows[last], self.lengths[last]
        self.rows.pop()
        self.lengths.pop()


class RowCache:
    """The cache of a batch whose rows come and go: each stands in a place of 256 tokens, or 512, 1,024, … as it needs.

    A forward pass either reads new rows (`read`) or adds tokens to all rows there are (`extend`).
    """

    def __init__(self, config: GPTConfig, device: torch.device):
        self.config, self.device = config, device
        lengths, length = [], LEAST
        while length < config.max_seq_len:
            lengths.append(length)
            length *= 2
        self.buckets = [Bucket(each) for each in [*lengths, config.max_seq_len]]
        self._reading: list[tuple[Bucket, Tensor, Tensor, int]] = []
        self._extending: list[tuple[Bucket, slice, Tensor | None]] = []
        self._positions: slice | Tensor = slice(0)

    @property
    def bytes(self) -> int:
        """What is allocated."""
        return sum(bucket.store.nbytes for bucket in self.buckets if bucket.store is not None)

    def _bucket_for(self, length: int) -> Bucket:
        return next(bucket for bucket in self.buckets if bucket.length >= length)

    def read(self, rows: Sequence[int], lengths: Sequence[int]) -> None:
        """The next pass reads new rows from their beginning: ids (len(rows), the longest), padded on the right."""
        taken: dict[int, tuple[Bucket, list[int], list[int]]] = {}
        for number, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            bucket = self._bucket_for(length + 1 if length < self.config.max_seq_len else length)
            _, places, numbers = taken.setdefault(bucket.length, (bucket, [], []))
            places.append(bucket.put(row, length))
            numbers.append(number)
        self._reading = []
        for bucket, places, numbers in taken.values():
            longest = min(max(lengths), bucket.length)
            self._reading.append((bucket, torch.tensor(places, device=self.device), torch.tensor(numbers, device=self.device), longest))
        self._extending = []
        self._positions = slice(0, max(lengths))

    def extend(self, tokens: int) -> list[int]:
        """The next pass adds that many tokens to every row; returns the rows in the order of its batch. `shorten` takes some back."""
        for bucket in self.buckets[:-1]:
            for place in reversed(range(len(bucket.rows))):
                if bucket.lengths[place] + tokens > bucket.length:
                    self._move(bucket, place, self._bucket_for(bucket.lengths[place] + tokens))
        self._reading, self._extending = [], []
        names: list[int] = []
        lengths: list[int] = []
        for bucket in self.buckets:
            if bucket.rows:
                self._extending.append((bucket, slice(len(names), len(names) + len(bucket.rows)), None))
                names += bucket.rows
                lengths += bucket.lengths
                bucket.lengths = [length + tokens for length in bucket.lengths]
        if len(names) == 1:
            self._positions = slice(lengths[0], lengths[0] + tokens)
            if tokens > 1:
                self._extending = [(self._extending[0][0], slice(0, 1), self._mask(self._start(lengths), tokens))]
            return names
        starts = self._start(lengths)
        self._positions = starts[:, None] + torch.arange(tokens, device=starts.device)
        self._extending = [(bucket, part, self._mask(starts[part], tokens)) for bucket, part, _ in self._extending]
        return names

    def _start(self, lengths: list[int]) -> Tensor:
        return torch.tensor(lengths, device=self.device)

    def _mask(self, starts: Tensor, tokens: int) -> Tensor:
        """(B, 1, T, S): which of the S tokens each of the new ones sees."""
        end = int(starts.max()) + tokens
        sees = starts[:, None] + torch.arange(tokens, device=starts.device)
        return (torch.arange(end, device=starts.device) <= sees[:, :, None])[:, None]

    def _move(self, old: Bucket, place: int, new: Bucket) -> None:
        at = new.put(old.rows[place], old.lengths[place])
        assert old.store is not None
        new.resize(self.config, old.store)
        assert new.store is not None
        new.store[:, :, at, :, : old.length] = old.store[:, :, place]
        old.remove(place)
        old.resize(self.config, new.store)

    def shorten(self, row: int, tokens: int) -> None:
        """Forget the last tokens of a row: guesses that were wrong."""
        bucket, place = self._find(row)
        bucket.lengths[place] -= tokens

    def drop(self, row: int) -> None:
        """Free a row's place."""
        bucket, place = self._find(row)
        bucket.remove(place)
        if bucket.store is not None:
            bucket.resize(self.config, bucket.store)

    def _find(self, row: int) -> tuple[Bucket, int]:
        return next((bucket, bucket.rows.index(row)) for bucket in self.buckets if row in bucket.rows)

    def positions(self, tokens: int) -> slice | Tensor:
        """The positions of the tokens of this forward pass: the same for all rows, or (B, T)."""
        return self._positions

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Keep the new k, v and attend with q to all that each query may see; all (B, H, T, D)."""
        if self._reading:
            for bucket, places, numbers, length in self._reading:
                if layer == 0:
                    bucket.resize(self.config, k)
                assert bucket.store is not None
                for which, new in enumerate((k, v)):
                    bucket.store[layer, which, places, :, :length] = new[numbers, :, :length]
            return F.scaled_dot_product_attention(q, k, v, is_causal=q.size(2) > 1)
        parts = [self._attend_one(layer, q[part], k[part], v[part], bucket, part, mask) for bucket, part, mask in self._extending]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _attend_one(self, layer: int, q: Tensor, k: Tensor, v: Tensor, bucket: Bucket, part: slice, mask: Tensor | None) -> Tensor:
        assert bucket.store is not None
        keys, values = bucket.store[layer, 0, : len(bucket.rows)], bucket.store[layer, 1, : len(bucket.rows)]
        positions = self._positions
        if isinstance(positions, slice):
            keys[0, :, positions], values[0, :, positions] = k[0], v[0]
            end = positions.stop
        else:
            rows, at = torch.arange(len(bucket.rows), device=q.device)[:, None], positions[part]
            keys[rows, :, at], values[rows, :, at] = k.transpose(1, 2), v.transpose(1, 2)
            assert mask is not None
            end = mask.size(-1)
        return F.scaled_dot_product_attention(q, keys[:, :, :end], values[:, :, :end], attn_mask=mask)
