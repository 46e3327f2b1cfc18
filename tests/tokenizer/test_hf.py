"""The tokenizer as transformers opens it: same ids, same text, same special tokens."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.tokenizer.hf import merges
from nanochat.tokenizer.samples import SAMPLES
from nanochat.tokenizer.special import SPECIAL_TOKENS
from nanochat.tokenizer.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def opened(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    directory: Path = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(directory, model_max_length=2048)
    return AutoTokenizer.from_pretrained(directory)


# Runs of the same few characters are where merges overlap; '<' is left out so that no special token is spelled.
unicode_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<"), max_size=200)
repetitive_text = st.lists(st.tuples(st.sampled_from("ab \n\r\t.1é語'"), st.integers(1, 40)), max_size=12).map(
    lambda runs: "".join(char * count for char, count in runs)
)


@settings(max_examples=400)
@given(unicode_text | repetitive_text)
def test_ids_equal_ours(tokenizer: Tokenizer, opened: Any, text: str) -> None:
    assert opened(text)["input_ids"] == tokenizer.encode(text)


@pytest.mark.parametrize("kind", SAMPLES)
def test_ids_equal_ours_on_real_text_and_decode_to_it(tokenizer: Tokenizer, opened: Any, kind: str) -> None:
    ids = opened(SAMPLES[kind])["input_ids"]
    assert ids == tokenizer.encode(SAMPLES[kind])
    assert opened.decode(ids) == SAMPLES[kind]


def test_special_tokens_have_our_ids_and_are_skipped_as_special(tokenizer: Tokenizer, opened: Any) -> None:
    assert [opened.convert_tokens_to_ids(name) for name in SPECIAL_TOKENS] == [tokenizer.special_id(name) for name in SPECIAL_TOKENS]
    assert opened.decode([tokenizer.bos_id, *tokenizer.encode("hello")], skip_special_tokens=True) == "hello"
    assert (opened.bos_token, opened.eos_token, opened.pad_token) == ("<|bos|>", "<|assistant_end|>", "<|assistant_end|>")


def test_sizes_are_those_of_the_model(tokenizer: Tokenizer, opened: Any) -> None:
    assert len(opened) == tokenizer.vocab_size
    assert opened.model_max_length == 2048


def test_merges_are_those_that_made_the_ranks() -> None:
    ranks = {bytes([byte]): byte for byte in range(256)}
    ranks |= {b"in": 256, b"th": 257, b"the": 258, b"ing": 259, b"thing": 260, b"aa": 261, b"aaa": 262, b"aaaa": 263}
    assert merges(ranks) == [
        (b"i", b"n"),
        (b"t", b"h"),
        (b"th", b"e"),
        (b"in", b"g"),
        (b"th", b"ing"),
        (b"a", b"a"),
        (b"aa", b"a"),
        (b"aa", b"aa"),
    ]
