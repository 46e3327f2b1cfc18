"""Keys and values of the rows in work, in memory that follows what they hold."""

from collections.abc import Callable, Sequence
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
    keeps: int = 0
    """Places that are never given back once there."""
    rows: list[int] = field(default_factory=list)
    """Names of the rows."""
    lengths: list[int] = field(default_factory=list)
    """Tokens that each of them holds."""
    store: Tensor | None = None
    """(layers, 2, places, heads, length, head_dim): keys and values."""

    @property
    def places(self) -> int:
        """Places in the store."""
        return 0 if self.store is None else self.store.size(2)

    def resize(self, config: GPTConfig, like: Tensor) -> None:
        """Have places for the rows: twice as many when there are too few, fewer when most are empty."""
        have, wanted = self.places, len(self.rows)
        size = 1 << (wanted - 1).bit_length() if wanted else min(have, self.keeps)
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


@dataclass(frozen=True)
class _Part:
    """The rows of one bucket in a pass that adds tokens."""

    bucket: Bucket
    rows: slice
    """Where they stand in the batch."""
    places: int
    """How many they are."""


class RowCache:
    """The cache of a batch whose rows come and go: each stands in a place of 256 tokens, or 512, 1,024, … as it needs.

    A forward pass either reads new rows (`read`) or adds tokens to all rows there are (`extend`).
    """

    def __init__(self, config: GPTConfig, device: torch.device, fixed: bool = False):
        """fixed: passes that add a token have every place in their batch, empty ones too, and their shapes and addresses are the
        same as long as `layout` is, so that a CUDA graph can replay them."""
        self.config, self.device, self.fixed = config, device, fixed
        lengths, length = [], LEAST
        while length < config.max_seq_len:
            lengths.append(length)
            length *= 2
        self.buckets = [Bucket(each, keeps=int(fixed)) for each in [*lengths, config.max_seq_len]]
        self._reading: list[tuple[Bucket, Tensor, Tensor, int]] = []
        self._extending: list[_Part] = []
        self._positions: slice | Tensor = slice(0)
        self._masks: list[Tensor | None] = []
        self._longest = 0
        self.one_query: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] = one_query_attention
        """Attention where rows are fixed; a compiled one may take its place."""

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

    def extend(self, tokens: int) -> list[int | None]:
        """The next pass adds that many tokens to every row; returns the rows in the order of its batch, None for an empty place.

        `shorten` takes some back.
        """
        for bucket in self.buckets[:-1]:
            for place in reversed(range(len(bucket.rows))):
                if bucket.lengths[place] + tokens > bucket.length:
                    self._move(bucket, place, self._bucket_for(bucket.lengths[place] + tokens))
        self._reading, self._extending = [], []
        names: list[int | None] = []
        lengths: list[int] = []
        for bucket in self.buckets:
            if bucket.rows:
                empty = bucket.places - len(bucket.rows) if self.fixed and tokens == 1 else 0
                count = len(bucket.rows) + empty
                self._extending.append(_Part(bucket, slice(len(names), len(names) + count), count))
                names += [*bucket.rows, *[None] * empty]
                lengths += [*bucket.lengths, *[0] * empty]
                bucket.lengths = [length + tokens for length in bucket.lengths]
        if len(names) == 1 and not self.fixed:
            self._positions = slice(lengths[0], lengths[0] + tokens)
        else:
            self._positions = torch.tensor(lengths, device=self.device)[:, None] + torch.arange(tokens, device=self.device)
        self._longest = max(lengths, default=0) + tokens
        return names

    @property
    def layout(self) -> tuple[tuple[int, int, int], ...]:
        """What the shapes and addresses of a pass that adds a token to fixed rows depend on."""
        parts = [(part.bucket.length, part.places, part.bucket.store) for part in self._extending]
        return tuple((length, places, store.data_ptr()) for length, places, store in parts if store is not None)

    def stand_at(self, positions: Tensor) -> None:
        """Take the positions of the next pass, (B, 1), from here: their present values are copied there."""
        assert isinstance(self._positions, Tensor)
        self._positions = positions.copy_(self._positions)

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
        """The positions of the tokens of this forward pass, which begins with this call: the same for all rows, or (B, T)."""
        self._masks = [self._mask(part) for part in self._extending]
        return self._positions

    def _mask(self, part: _Part) -> Tensor | None:
        """(B, 1, T, S): which of the S tokens each of the new ones sees; None for all of them."""
        at = self._positions
        if isinstance(at, slice):
            if at.stop - at.start == 1:
                return None
            sees = torch.arange(at.start, at.stop, device=self.device)[None]
        else:
            sees = at[part.rows]
        end = part.bucket.length if self.fixed else min(self._longest, part.bucket.length)
        return (torch.arange(end, device=self.device) <= sees[:, :, None])[:, None]

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
        pairs = zip(self._extending, self._masks, strict=True)
        parts = [self._attend_one(layer, q[part.rows], k[part.rows], v[part.rows], part, mask) for part, mask in pairs]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _attend_one(self, layer: int, q: Tensor, k: Tensor, v: Tensor, part: _Part, mask: Tensor | None) -> Tensor:
        store, at = part.bucket.store, self._positions
        assert store is not None
        keys, values = store[layer, 0, : part.places], store[layer, 1, : part.places]
        if isinstance(at, slice):
            keys[0, :, at], values[0, :, at] = k[0], v[0]
            end = at.stop
        else:
            rows = torch.arange(part.places, device=self.device)[:, None]
            keys[rows, :, at[part.rows]], values[rows, :, at[part.rows]] = k.transpose(1, 2), v.transpose(1, 2)
            assert mask is not None
            end = mask.size(-1)
        if self.fixed and q.size(2) == 1:
            assert mask is not None
            return self.one_query(q, keys, values, mask)
        return F.scaled_dot_product_attention(q, keys[:, :, :end], values[:, :, :end], attn_mask=mask)


def one_query_attention(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Attention of one query a row, q: (B, H, 1, D), to keys and values (B, H, S, D) where mask, (B, 1, 1, S), lets it.

    Products and sums, which compile to passes over keys and values that fill a GPU at any B; kernels made for many queries give each
    head of each row to one of its processors and leave the rest idle.
    """
    scores = (q.float() * keys.float()).sum(dim=-1) * q.size(-1) ** -0.5  # (B, H, S)
    weights = scores.masked_fill(~mask[:, :, 0], float("-inf")).softmax(dim=-1)
    return (weights[..., None] * values.float()).sum(dim=2, keepdim=True).to(q.dtype)
