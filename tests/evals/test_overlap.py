"""Questions that stand in the training text are found, and only these."""

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.data.text_shards import write_shard
from nanochat.evals.base_eval_settings import BaseEvalSettings
from nanochat.evals.core.bundle import CoreTask, Question
from nanochat.evals.overlap import N, count_overlap, gram_hashes, word_numbers, words

TEXT = "It was a bright cold day in the middle of a long spring and all of the clocks in the town were striking one after another"


def test_thirteen_words_in_a_row_are_found_whatever_the_marks_and_the_case() -> None:
    asked = "IT was, a bright; cold day -- in the middle of a LONG spring?"
    other = "It was a bright cold day in the middle of a short autumn and nothing else of it is the same"
    result = count_overlap({"a": [asked, other], "b": ["too short to tell"]}, [["Something before.", TEXT], ["after"]])
    assert (result.questions, result.found, result.too_short) == (2, 1, 1)
    assert result.by_task == {"a": (1, 2), "b": (0, 0)}
    assert result.to_json("x")["share"] == 0.5


def test_a_shorter_question_is_looked_for_as_a_whole() -> None:
    inside, outside = "in the middle of a long spring and", "in the middle of a long winter and"
    assert count_overlap({"a": [inside, outside]}, [[TEXT]]).found == 1


def test_documents_have_borders() -> None:
    first, second = " ".join(TEXT.split()[:8]), " ".join(TEXT.split()[8:])
    assert count_overlap({"a": [TEXT[:80]]}, [[first, second]]).found == 0


@given(st.integers(0, 10_000))
def test_it_finds_what_a_search_of_the_words_finds(seed: int) -> None:
    rng = random.Random(seed)
    text = [rng.choice("abcd") for _ in range(400)]
    questions = [[rng.choice("abcd") for _ in range(rng.randint(8, 15))] for _ in range(6)] + [text[i : i + 14] for i in (3, 90)]
    there = {tuple(text[i : i + n]) for n in range(8, N + 1) for i in range(len(text) - n + 1)}
    expected = 0
    for question in questions:
        n = min(N, len(question))
        expected += any(tuple(question[i : i + n]) in there for i in range(len(question) - n + 1))
    assert count_overlap({"a": [" ".join(question) for question in questions]}, [[" ".join(text)]]).found == expected


def test_hashes_tell_orders_apart() -> None:
    numbers = word_numbers(words("one two three two one"))
    assert len(set(gram_hashes(numbers, 2).tolist())) == 4
    assert len(gram_hashes(numbers, 6)) == 0


def test_a_damaged_shard_costs_the_overlap_and_not_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from nanochat.evals.base_eval import _overlap

    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    shards = [tmp_path / f"data/python/shard_{number:05d}.parquet" for number in (0, 31)]
    for shard in shards:
        write_shard(shard, [TEXT] * 100, keep_checksum=True)
    tasks = [CoreTask("a", "language_modeling", 0, " ", 0.0, [Question((TEXT,), ("one",), 0)])]
    settings = BaseEvalSettings(data="python")
    found = _overlap(settings, tmp_path, tasks)
    assert found is not None
    assert found["found"] == 1
    whole = shards[0].read_bytes()
    shards[0].write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    assert _overlap(settings, tmp_path, tasks) is None
    assert "shard_00000.parquet: its checksum is not" in capsys.readouterr().err
