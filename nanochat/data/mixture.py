"""A mixture of conversations as rows: row number i is a pure function of the seed, i and the parts."""

import bisect
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nanochat.common.errors import UserError
from nanochat.data.packing import Packing, pack
from nanochat.data.permutation import Permutation
from nanochat.data.rendered import RenderedSet
from nanochat.model.loss import NO_TARGET


@dataclass(frozen=True)
class FinitePart:
    """A set that is gone through again and again, in another order each time."""

    name: str
    """As it is spoken of."""
    per_pass: int
    """Conversations of it in one pass of the mixture."""
    conversations: RenderedSet
    seed: int

    @property
    def size(self) -> int:
        """How many there are."""
        return len(self.conversations)

    def stretch(self, first: int, count: int) -> tuple[RenderedSet, NDArray[np.int64]]:
        """A set, and the numbers in it of the conversations `first` to `first + count` of an endless stream of this part."""
        positions = np.arange(first, first + count)
        numbers = np.empty_like(positions)
        epochs = positions // self.size
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            numbers[chosen] = Permutation(self.size, self.seed, int(epoch))(positions[chosen] % self.size)
        return self.conversations, numbers


@dataclass(frozen=True)
class EndlessPart:
    """Conversations that are made as they are needed."""

    name: str
    per_pass: int
    make: Callable[[int, int], RenderedSet]
    """Makes a count of them from a first one on."""
    size: None = None

    def stretch(self, first: int, count: int) -> tuple[RenderedSet, NDArray[np.int64]]:
        """As FinitePart's."""
        return self.make(first, count), np.arange(count)


Part = FinitePart | EndlessPart


@dataclass(frozen=True)
class Pass:
    """One pass over the mixture, packed."""

    first_row: int
    """Number of its first row, counted through all passes."""
    sets: list[RenderedSet]
    part: NDArray[np.int64]
    """(conversations,): which part each is of."""
    number: NDArray[np.int64]
    """(conversations,): its number in the set of its part."""
    packing: Packing
    supervised: NDArray[np.int64]
    """(rows,): tokens of each row that the model is to learn to say."""


class Mixture:
    """Rows of seq_len + 1 tokens, made of whole conversations; targets are the assistants' own tokens alone."""

    def __init__(self, parts: list[Part], seq_len: int, seed: int, pad_id: int):
        if not parts or not any(part.per_pass for part in parts):
            raise UserError("there is no conversation to train on: every task is left out or has weight 0")
        self.parts, self.seq_len, self.seed, self.pad_id = [part for part in parts if part.per_pass], seq_len, seed, pad_id
        self._first_rows = [0]  # of the passes that were made, and of the next one
        self._held: dict[int, Pass] = {}
        self.first_pass = self._open(0)
        if len(self.first_pass.packing) == 0:
            drawn = len(self.first_pass.part)
            raise UserError(f"all {drawn:,} conversations of the first pass are longer than --max_seq_len={seq_len} tokens: choose more")

    @property
    def rows_per_pass(self) -> int:
        """Rows of the first pass; others differ by a few."""
        return len(self.first_pass.packing)

    def too_long(self) -> dict[str, tuple[int, int]]:
        """For each part of the first pass: conversations that do not fit a row and are left out, and all of them."""
        left_out = np.bincount(self.first_pass.part[self.first_pass.packing.too_long], minlength=len(self.parts))
        return {part.name: (int(n), part.per_pass) for part, n in zip(self.parts, left_out, strict=True)}

    def fill(self) -> float:
        """The share of the first pass's places that hold a conversation."""
        one = self.first_pass
        part, number = one.part[one.packing.members], one.number[one.packing.members]
        held = sum(int(each.lengths[number[part == i]].sum()) for i, each in enumerate(one.sets))
        return held / (len(one.packing) * (self.seq_len + 1))

    def _open(self, index: int) -> Pass:
        """Pass number `index`, one of those whose first row is known. The two that were made last are held: rows are read ahead."""
        if index not in self._held:
            one = self._make(index, self._first_rows[index])
            if index + 1 == len(self._first_rows):
                self._first_rows.append(one.first_row + len(one.packing))
            self._held = {**dict(list(self._held.items())[-1:]), index: one}
        return self._held[index]

    def _make(self, index: int, first_row: int) -> Pass:
        stretches = [part.stretch(index * part.per_pass, part.per_pass) for part in self.parts]
        part = np.concatenate([np.full(len(numbers), i) for i, (_, numbers) in enumerate(stretches)])
        number = np.concatenate([numbers for _, numbers in stretches])
        order = Permutation(len(part), self.seed, index)(np.arange(len(part)))
        part, number = part[order], number[order]
        lengths, learned = np.empty_like(number), np.empty_like(number)
        for i, (each, _) in enumerate(stretches):
            lengths[part == i] = each.lengths[number[part == i]]
            learned[part == i] = each.supervised()[number[part == i]]
        packing = pack(lengths, self.seq_len + 1)
        sums = np.concatenate([[0], np.cumsum(learned[packing.members])])
        supervised = np.diff(sums[packing.ends], prepend=0)
        return Pass(first_row, [each for each, _ in stretches], part, number, packing, supervised)

    def _pass_of(self, row: int) -> Pass:
        """The pass that a row is in. Each begins where the one before ended, so those before it are made in turn."""
        while row >= self._first_rows[-1]:
            self._open(len(self._first_rows) - 1)
        return self._open(bisect.bisect_right(self._first_rows, row) - 1)

    def read(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows by their numbers (n,), counted through all passes: ids and targets, each (n, seq_len) int64."""
        ids = np.full((len(numbers), self.seq_len + 1), self.pad_id, dtype=np.int64)
        mask = np.zeros_like(ids, dtype=np.bool_)
        for place, row in enumerate(numbers.tolist()):
            one, at = self._pass_of(row), 0
            for member in one.packing.row(row - one.first_row):
                each = one.sets[one.part[member]]
                span = each.span(int(one.number[member]))
                end = at + span.stop - span.start
                ids[place, at:end] = each.ids[span]
                mask[place, at:end] = each.mask[span]
                at = end
        return ids[:, :-1], np.where(mask[:, 1:], ids[:, 1:], NO_TARGET)

    def supervised(self, first: int, count: int) -> int:
        """Targets in `count` rows from row `first` on."""
        total = 0
        while count:
            one = self._pass_of(first)
            at = first - one.first_row
            taken = min(count, len(one.packing) - at)
            total += int(one.supervised[at : at + taken].sum())
            first, count = first + taken, count - taken
        return total
