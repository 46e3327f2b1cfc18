"""Conversations in rows: whole, masked, in an order that only the row's number decides, and counted."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanochat.common.errors import UserError
from nanochat.data.loader import Split, micro_batches
from nanochat.data.mixture import EndlessPart, FinitePart, Mixture
from nanochat.data.packing import pack
from nanochat.data.rendered import RenderedSet, keep, open_kept, render
from nanochat.tokenizer.conversation import Conversation, Rendered, Renderer
from nanochat.tokenizer.tokenizer import Tokenizer

PAD = 60_000


def conversation(number: int, length: int) -> Rendered:
    """A recognisable one: its number, then its places; the second half is learned."""
    return Rendered([number] * length, [2 * place >= length for place in range(length)])


def set_of(lengths: list[int], first: int = 0) -> RenderedSet:
    return RenderedSet.of([conversation(first + i, length) for i, length in enumerate(lengths)])


def endless(first: int, count: int) -> RenderedSet:
    return RenderedSet.of([conversation(1000 + i, 3 + i % 4) for i in range(first, first + count)])


@given(st.lists(st.integers(1, 60), max_size=400))
def test_every_conversation_stands_whole_in_one_row_or_is_counted(lengths: list[int]) -> None:
    room = 50
    packing = pack(np.array(lengths, dtype=np.int64), room)
    rows = [packing.row(row).tolist() for row in range(len(packing))]
    assert sorted([position for row in rows for position in row] + packing.too_long.tolist()) == list(range(len(lengths)))
    assert all(0 < sum(lengths[position] for position in row) <= room for row in rows)
    assert packing.too_long.tolist() == [position for position, length in enumerate(lengths) if length > room]


def test_rows_are_well_filled() -> None:
    lengths = np.random.default_rng(0).integers(5, 400, 5000)
    packing = pack(lengths, 513)
    assert lengths.sum() / (len(packing) * 513) > 0.98


def mixture(seed: int = 1, times: int = 1) -> Mixture:
    parts: list[FinitePart | EndlessPart] = [
        FinitePart("a", 30 * times, set_of([3, 9, 5, 40, 7, 11, 2, 13, 6, 8]), seed),
        EndlessPart("b", 12 * times, endless),
    ]
    return Mixture(parts, 20, seed, PAD)


def test_a_row_is_a_function_of_its_number() -> None:
    whole, numbers = mixture(), np.arange(3 * mixture().rows_per_pass)
    ids, targets = whole.read(numbers)
    shuffled = np.random.default_rng(0).permutation(numbers)
    other = mixture()
    again_ids, again_targets = other.read(shuffled)
    assert np.array_equal(again_ids, ids[shuffled])
    assert np.array_equal(again_targets, targets[shuffled])
    assert not np.array_equal(mixture(seed=2).read(numbers)[0], ids)


def test_each_pass_is_made_once_though_rows_are_read_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    make = Mixture._make
    monkeypatch.setattr(Mixture, "_make", lambda self, index, first: made.append(index) or make(self, index, first))  # type: ignore[func-returns-value]
    one = mixture(times=10)
    assert one.rows_per_pass > 64
    supervised: list[float] = []
    batches = micro_batches(one, Split(0, 1, 2, 2), 0, torch.device("cpu"))
    while len(supervised) * 4 < 4 * one.rows_per_pass:
        supervised.append(next(batches).divisor)
        next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert made == list(range(len(made)))
    assert len(made) >= 4
    monkeypatch.undo()
    again = mixture(times=10)
    assert supervised == [again.supervised(4 * step, 4) for step in range(len(supervised))]


def test_targets_are_what_is_learned_and_never_cross_a_border() -> None:
    one = mixture()
    ids, targets = one.read(np.arange(one.rows_per_pass))
    for row, wanted in zip(ids.tolist(), targets.tolist(), strict=True):
        for place, target in enumerate(wanted):
            if target >= 0:
                assert row[place] == target  # each conversation is its number again and again: a border would show
                assert target != PAD
    counted = [one.supervised(row, 1) for row in range(one.rows_per_pass)]
    assert counted == (targets >= 0).sum(axis=1).tolist()
    assert one.supervised(2, 9) == sum(counted[2:9]) + sum(one.supervised(row, 1) for row in range(9, 11))


def test_a_pass_goes_through_every_conversation_as_often_as_its_weight_says() -> None:
    one = mixture()
    seen: Counter[int] = Counter()
    for index in range(2):
        opened = one._open(index)
        for part, number in zip(opened.part, opened.number, strict=True):
            each = opened.sets[part]
            seen[int(each.ids[each.span(int(number))][0])] += 1
    assert [seen[i] for i in range(10)] == [6] * 10  # weight 3, two passes
    assert [seen[1000 + i] for i in range(24)] == [1] * 24
    assert one.too_long() == {"a": (3, 30), "b": (0, 12)}


def test_what_cannot_be_a_mixture() -> None:
    with pytest.raises(UserError, match="no conversation"):
        Mixture([], 20, 0, PAD)
    with pytest.raises(UserError, match="longer than --max_seq_len=20"):
        Mixture([FinitePart("a", 2, set_of([40, 50]), 0)], 20, 0, PAD)


def test_tokens_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    renderer = Renderer(Tokenizer.from_ranks({bytes([byte]): byte for byte in range(256)}))

    class Talks:
        asked = 0

        def __len__(self) -> int:
            return 3000

        def __getitem__(self, number: int) -> Conversation:
            self.asked += 1
            return {"messages": [{"role": "user", "content": f"{number}?"}, {"role": "assistant", "content": "x" * (number % 7 + 1)}]}

    talks = Talks()
    made = open_kept(keep(renderer, talks, "talks", "first"))
    expected = render(renderer, talks, 0, 3000)
    assert np.array_equal(made.ids, expected.ids)
    assert np.array_equal(made.mask, expected.mask)
    assert made.supervised().tolist() == [number % 7 + 2 for number in range(3000)]
    asked = talks.asked
    keep(renderer, talks, "talks", "first")
    assert talks.asked == asked
    keep(renderer, talks, "talks", "second")
    assert talks.asked == asked + 3000
