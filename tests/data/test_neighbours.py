"""An embedding from the text: what stands beside what, counted plainly, and tokens that can stand for each other."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from nanochat.data import neighbours
from nanochat.data.neighbours import DOUBT, REACH, RMS, embedding_of_text, neighbour_table

CPU = torch.device("cpu")
ARTICLES, NOUNS, VERBS, UNSEEN = range(8), range(8, 24), range(24, 36), range(36, 40)


@pytest.fixture(scope="module")
def phrases() -> NDArray[np.uint16]:
    """An article, a noun, a verb, and again, any of each."""
    chance = np.random.default_rng(0)
    return np.stack([chance.choice(list(kind), 20_000) for kind in (ARTICLES, NOUNS, VERBS)], axis=1).astype("<u2").ravel()


def test_the_table_is_what_plain_counting_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    text = np.random.default_rng(1).integers(0, 6, 400).astype("<u2")
    text[text == 4] = 3
    monkeypatch.setattr(neighbours, "TOKENS_AT_ONCE", 250)
    table, share = neighbour_table([text[:100], text[100:]], 7, CPU)
    seen = [int((text == token).sum()) for token in range(7)]
    assert share.tolist() == pytest.approx([count / 400 for count in seen])
    parts = (text[:250], text[250:])
    columns = sorted((token for token in range(7) if seen[token]), key=lambda token: -seen[token])
    assert table.shape == (7, 2 * REACH * len(columns))
    places = [(distance, after) for distance in range(1, REACH + 1) for after in (True, False)]
    for token in range(7):
        rows = table[token].reshape(len(places), len(columns))
        for row, (distance, after) in zip(rows, places, strict=True):
            if not seen[token]:
                assert not row.any()
                continue
            information = []
            for neighbour in columns:
                pair = (token, neighbour) if after else (neighbour, token)
                together = sum((part[i], part[i + distance]) == pair for part in parts for i in range(len(part) - distance))
                usual = seen[neighbour] / 400
                information.append(math.log((together + DOUBT * usual) / (seen[token] + DOUBT) / usual))
            mean = sum(seen[n] / 400 * each for n, each in zip(columns, information, strict=True))
            want = [(each - mean) * math.sqrt(seen[n] / 400) for n, each in zip(columns, information, strict=True)]
            assert row.tolist() == pytest.approx(want)


def test_tokens_that_can_stand_for_each_other_begin_alike(phrases: NDArray[np.uint16]) -> None:
    rows = embedding_of_text([phrases], 40, 16, CPU)
    assert rows.shape == (40, 16)
    assert rows[: UNSEEN.start].square().mean(dim=1).tolist() == pytest.approx([RMS**2] * UNSEEN.start)
    assert not rows[list(UNSEEN)].any()
    likeness = torch.nn.functional.cosine_similarity(rows[:, None], rows[None], dim=-1)
    for kind in (ARTICLES, NOUNS, VERBS):
        others = [token for token in range(UNSEEN.start) if token not in kind]
        assert likeness[list(kind)][:, list(kind)].min() > 0.9
        assert likeness[list(kind)][:, others].max() < 0.1


def test_what_all_rows_have_in_common_lies_along_the_first_axis() -> None:
    chance = np.random.default_rng(2)
    text = (chance.zipf(1.3, 60_000) % 40 + np.arange(60_000) // 3 % 2).clip(0, 39).astype("<u2")
    rows = embedding_of_text([text], 40, 16, CPU)
    common = torch.from_numpy(np.bincount(text, minlength=40) / len(text)).float() @ rows
    assert common[0] > 0.05 * rows.norm(dim=1).max()
    assert common[1:].abs().max() < 1e-3 * common[0]


def test_a_text_of_one_token_tells_nothing() -> None:
    assert not embedding_of_text([np.full(1000, 3, dtype="<u2")], 8, 16, CPU).any()


def test_a_width_beyond_what_the_text_tells_is_filled_with_zeros(phrases: NDArray[np.uint16]) -> None:
    rows = embedding_of_text([phrases], 40, 64, CPU)
    assert rows.shape == (40, 64)
    assert torch.isfinite(rows).all()
    assert not rows[:, 40:].any()


def test_of_a_long_text_each_shard_begins(phrases: NDArray[np.uint16]) -> None:
    noise = np.full(1000, 39, dtype="<u2")
    half = len(phrases) // 2
    table, share = neighbour_table([np.append(phrases[:half], noise), np.append(phrases[half:], noise)], 40, CPU, tokens=30_000)
    assert share[39] == 0
    assert not table[39].any()


def test_the_rarer_tokens_are_nobodys_neighbours(phrases: NDArray[np.uint16], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "NEIGHBOURS", 20)
    table, _ = neighbour_table([phrases], 40, CPU)
    assert table.shape == (40, 2 * REACH * 20)
    rows = embedding_of_text([phrases], 40, 16, CPU)
    likeness = torch.nn.functional.cosine_similarity(rows[NOUNS[0]], rows[NOUNS[5]], dim=0)
    assert likeness > 0.9


def test_no_other_random_number_is_touched(phrases: NDArray[np.uint16]) -> None:
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    once = embedding_of_text([phrases], 40, 16, CPU)
    assert torch.equal(torch.rand(3), want)
    assert torch.equal(embedding_of_text([phrases], 40, 16, CPU), once)
