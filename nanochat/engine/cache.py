"""Keys and values of what was read already: one prompt, or many of different lengths side by side."""

import torch
from torch import Tensor

from nanochat.model.config import GPTConfig


class StaticKVCache:
    """Keys and values of every layer, in one allocation for the whole length, of the dtype and on the device of the first."""

    def __init__(self, config: GPTConfig, batch: int, max_len: int):
        self._shape = (2, config.num_layers, batch, config.num_heads, max_len, config.head_dim)
        self._store: Tensor | None = None
        self._length = 0

    def positions(self, tokens: int) -> slice:
        """The positions of the next `tokens` tokens."""
        return slice(self._length, self._length + tokens)

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keep the new k, v: (B, H, T, D) of a layer; returns all so far, (B, H, S, D), and which of them each query sees."""
        if self._store is None:
            self._store = torch.empty(self._shape, device=k.device, dtype=k.dtype)
        tokens, end = k.size(2), self._length + k.size(2)
        self._store[0, layer, :, :, self._length : end] = k
        self._store[1, layer, :, :, self._length : end] = v
        mask = None
        if 1 < tokens < end:  # query i stands at position end − tokens + i
            mask = torch.ones(tokens, end, dtype=torch.bool, device=k.device).tril(end - tokens)
        if layer == self._store.size(1) - 1:
            self._length = end
        return self._store[0, layer, :, :, :end], self._store[1, layer, :, :, :end], mask


class RaggedKVCache:
    """Keys and values of rows of different lengths, each at positions of its own.

    The first forward pass reads prompts, padded on the right: what stands after a row's end is never seen and soon written over.
    Every further pass adds one token a row.
    """

    def __init__(self, config: GPTConfig, lengths: list[int], max_len: int, device: torch.device):
        self._shape = (2, config.num_layers, len(lengths), config.num_heads, max_len, config.head_dim)
        self._store: Tensor | None = None
        self._read = False
        self.lengths = torch.tensor(lengths, device=device)  # (B,)

    def positions(self, tokens: int) -> slice | Tensor:
        """The positions of the next tokens: from 0 on in the first pass, then (B, 1), each row's own."""
        return self.lengths[:, None] if self._read else slice(0, tokens)

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keep the new k, v: (B, H, T, D) of a layer; returns all that some row may see, (B, H, S, D), and the mask (B, 1, 1, S)."""
        if self._store is None:
            self._store = torch.zeros(self._shape, device=k.device, dtype=k.dtype)
        last = layer == self._store.size(1) - 1
        if not self._read:
            tokens = k.size(2)
            self._store[0, layer, :, :, :tokens] = k
            self._store[1, layer, :, :, :tokens] = v
            self._read = last
            return k, v, None
        rows = torch.arange(k.size(0), device=k.device)
        self._store[0, layer, rows, :, self.lengths] = k[:, :, 0]
        self._store[1, layer, rows, :, self.lengths] = v[:, :, 0]
        if layer == 0:
            self._end = int(self.lengths.max()) + 1
            self._mask = (torch.arange(self._end, device=k.device) <= self.lengths[:, None])[:, None, None, :]
        if last:
            self.lengths = self.lengths + 1
        return self._store[0, layer, :, :, : self._end], self._store[1, layer, :, :, : self._end], self._mask

    @property
    def is_full(self) -> bool:
        """Whether some row has no place left for another token."""
        return int(self.lengths.max()) >= self._shape[4]

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the rows only: their numbers (B',). In place, layer by layer: there may be no room for a copy."""
        assert self._store is not None
        for layer in range(self._store.size(1)):
            self._store[:, layer, : len(rows)] = self._store[:, layer, rows]
        self._store, self.lengths = self._store[:, :, : len(rows)], self.lengths[rows]
