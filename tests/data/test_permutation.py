"""The order of the data."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.data.permutation import Permutation


@given(n=st.integers(1, 3000), seed=st.integers(0, 2**32), epoch=st.integers(0, 100))
def test_every_thing_comes_once(n: int, seed: int, epoch: int) -> None:
    assert sorted(Permutation(n, seed, epoch)(np.arange(n))) == list(range(n))


def test_seeds_and_epochs_give_other_orders_and_the_same_ones_the_same() -> None:
    first = Permutation(1000, 1, 0)(np.arange(1000))
    assert np.array_equal(first, Permutation(1000, 1, 0)(np.arange(1000)))
    for seed, epoch in ((2, 0), (1, 1)):
        assert (first == Permutation(1000, seed, epoch)(np.arange(1000))).mean() < 0.02


def test_any_position_of_a_huge_order_can_be_asked_for_alone() -> None:
    n = 50_000_000_000
    whole = Permutation(n, 7, 3)
    positions = np.array([0, 1, n // 2, n - 1])
    assert np.array_equal(whole(positions), np.concatenate([Permutation(n, 7, 3)(p[None]) for p in positions]))
    assert ((whole(positions) >= 0) & (whole(positions) < n)).all()


def test_the_order_looks_random() -> None:
    order = Permutation(20_000, 5, 0)(np.arange(20_000))
    assert np.corrcoef(np.arange(20_000), order)[0, 1] == pytest.approx(0, abs=0.03)
    steps = np.diff(order)
    assert len(np.unique(steps)) > 10_000
