"""A random order of n things that any position of can be asked for at once, without a table."""

import hashlib

import numpy as np
from numpy.typing import NDArray

ROUNDS = 6


class Permutation:
    """A seeded bijection of 0 … n−1: a Feistel network over the next even number of bits, walked until it lands inside.

    Cycle walking is format-preserving encryption's (Black and Rogaway, 2002): fewer than four steps on average.
    """

    def __init__(self, n: int, seed: int, epoch: int):
        self.n = n
        self._half_bits = np.uint64(max(1, -(-max(1, (n - 1).bit_length()) // 2)))
        self._mask = np.uint64((1 << int(self._half_bits)) - 1)
        digest = hashlib.sha256(f"{seed}/{epoch}/{n}".encode()).digest() * (ROUNDS // 4 + 1)
        self._keys = np.frombuffer(digest, dtype="<u8")[:ROUNDS] + np.arange(ROUNDS, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)

    def _round(self, half: NDArray[np.uint64], key: np.uint64) -> NDArray[np.uint64]:
        """A keyed hash of each half (SplitMix64's finaliser), cut to half the bits."""
        x = half + key
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return (x ^ (x >> np.uint64(31))) & self._mask

    def _encrypt(self, x: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = x >> self._half_bits, x & self._mask
        for key in self._keys:
            left, right = right, left ^ self._round(right, key)
        return (left << self._half_bits) | right

    def __call__(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where each position, in 0 … n−1, goes to."""
        x = self._encrypt(positions.astype(np.uint64))
        while (outside := x >= self.n).any():
            x[outside] = self._encrypt(x[outside])
        return x.astype(np.int64)
