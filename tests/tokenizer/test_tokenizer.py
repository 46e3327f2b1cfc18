"""Encoding and decoding: lossless, deaf to the spelling of special tokens, unharmed by hostile text, safe on disk."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.common.errors import UserError
from nanochat.tokenizer.hf import CONFIG_FILE, TOKENIZER_FILE
from nanochat.tokenizer.special import SPECIAL_TOKENS
from nanochat.tokenizer.tokenizer import RANKS_FILE, Tokenizer

BYTES_ONLY = {bytes([byte]): byte for byte in range(256)}
unicode_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
hostile_text = st.lists(st.sampled_from([*SPECIAL_TOKENS, "<|", "|>", " ", "\n", "語", "12345", "x"]), max_size=20).map("".join)


@given(unicode_text | hostile_text)
def test_decoding_gives_the_text_back(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(hostile_text)
def test_spelling_of_a_special_token_is_plain_text(tokenizer: Tokenizer, text: str) -> None:
    assert all(id < tokenizer.bos_id for id in tokenizer.encode(text))


@given(unicode_text | hostile_text)
def test_token_bytes_add_up_to_the_bytes_of_the_text(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.token_bytes()[tokenizer.encode(text)].sum() == len(text.encode())


@given(unicode_text | hostile_text)
def test_ids_are_those_of_tiktoken(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.encode(text) == tokenizer.encoding.encode_ordinary(text)


def test_special_tokens_follow_the_ranks_in_order_and_are_no_text(tokenizer: Tokenizer) -> None:
    ids = [tokenizer.special_id(name) for name in SPECIAL_TOKENS]
    assert ids == list(range(tokenizer.vocab_size - 9, tokenizer.vocab_size))
    assert ids[0] == tokenizer.bos_id
    assert tokenizer.decode(ids) == "".join(SPECIAL_TOKENS)
    assert not tokenizer.token_bytes()[ids].any()


@pytest.mark.parametrize("text", ["a\ud800b", "\udc80", "😀\ud83d"])
def test_a_lone_surrogate_becomes_the_replacement_character(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == "".join("�" if "\ud800" <= char <= "\udfff" else char for char in text)


@pytest.mark.parametrize(
    "text", [" " * 2_000_000 + "x", "\n" * 500_000, "a" * 500_000, " \t" * 500_000 + "x"], ids=["spaces", "newlines", "a", "mix"]
)
def test_a_huge_run_of_one_character_neither_crashes_nor_is_lost(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_batch_gives_the_ids_of_each_text_in_order(tokenizer: Tokenizer) -> None:
    texts = [f"{i} bottles" * (i % 7) for i in range(200)]
    assert tokenizer.encode_batch(texts, num_threads=4) == [tokenizer.encode(text) for text in texts]


def test_bytes_that_are_no_utf8_decode_to_replacement_characters() -> None:
    tokenizer = Tokenizer.from_ranks(BYTES_ONLY)
    assert tokenizer.decode([0xE8, 0xAA, ord("x")]) == "�x"
    assert tokenizer.decode_bytes([0xE8, 0xAA]) == b"\xe8\xaa"


def test_saved_and_opened_it_encodes_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    tokenizer.save(tmp_path)
    again = Tokenizer.from_directory(tmp_path)
    assert (again.hash, again.vocab_size) == (tokenizer.hash, tokenizer.vocab_size)
    assert again.encode("The lighthouse, 1234 語") == tokenizer.encode("The lighthouse, 1234 語")
    assert (tmp_path / "model.safetensors").read_bytes() == b"weights"


def test_the_hash_tells_tokenizers_apart(tokenizer: Tokenizer) -> None:
    one, other = Tokenizer.from_ranks({**BYTES_ONLY, b"ab": 256}), Tokenizer.from_ranks({**BYTES_ONLY, b"ba": 256})
    assert len({tokenizer.hash, one.hash, other.hash}) == 3
    assert Tokenizer.from_ranks({**BYTES_ONLY, b"ab": 256}).hash == one.hash


def test_ranks_file_opens_with_tiktoken_itself(tokenizer: Tokenizer, tmp_path: Path) -> None:
    from tiktoken.load import load_tiktoken_bpe

    tokenizer.save(tmp_path)
    assert load_tiktoken_bpe(str(tmp_path / RANKS_FILE)) == tokenizer.mergeable_ranks


def damaged(tokenizer: Tokenizer, directory: Path, damage: str) -> None:
    tokenizer.save(directory)
    ranks = directory / RANKS_FILE
    lines = ranks.read_bytes().splitlines(keepends=True)
    if damage == "cut at a line":
        ranks.write_bytes(b"".join(lines[:-5]))
    elif damage == "cut in a line":
        ranks.write_bytes(b"".join(lines)[:-3])
    elif damage == "garbage":
        ranks.write_bytes(b"\x00\xff garbage\n")
    elif damage == "empty":
        ranks.write_bytes(b"")
    elif damage == "another entry":
        ranks.write_bytes(b"".join([*lines[:-1], b"enp6eg== " + lines[-1].split()[1] + b"\n"]))
    elif damage == "no config":
        (directory / CONFIG_FILE).unlink()
    elif damage == "no ranks":
        ranks.unlink()
        (directory / TOKENIZER_FILE).unlink()


@pytest.mark.parametrize("damage", ["cut at a line", "cut in a line", "garbage", "empty", "another entry", "no config", "no ranks"])
def test_a_damaged_directory_is_refused_by_name(tokenizer: Tokenizer, tmp_path: Path, damage: str) -> None:
    damaged(tokenizer, tmp_path, damage)
    with pytest.raises(UserError, match=CONFIG_FILE if damage == "no config" else RANKS_FILE):
        Tokenizer.from_directory(tmp_path)


def test_more_entries_than_uint16_can_tell_apart_are_refused() -> None:
    pairs = {bytes([a, b]): 256 + a * 256 + b for a in range(256) for b in range(256)}
    fitting = {token: rank for token, rank in pairs.items() if rank < 65_536 - 9}
    assert Tokenizer.from_ranks({**BYTES_ONLY, **fitting}).special_id("<|output_end|>") == 65_535
    with pytest.raises(UserError, match="65,536"):
        Tokenizer.from_ranks({**BYTES_ONLY, **fitting, b"abc": 65_536 - 9})


def test_importing_it_loads_nothing_heavy() -> None:
    heavy = ("torch", "tiktoken", "rustbpe", "pyarrow")
    code = f"import sys, nanochat.tokenizer.tokenizer, nanochat.tokenizer.train; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_a_nanochat_tokenizer_from_elsewhere_is_opened_and_another_is_not(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    (tmp_path / "ranks.tiktoken").unlink()
    assert Tokenizer.from_directory(tmp_path).mergeable_ranks == tokenizer.mergeable_ranks
    whole = json.loads((tmp_path / "tokenizer.json").read_text())
    for change, word in (
        (lambda value: value["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex=r"\w+"), "splits text otherwise"),
        (lambda value: value["added_tokens"].pop(), "special tokens"),
        (lambda value: value["model"].update(vocab={"\u4e2d": 0}), "no byte-level BPE"),
        (lambda value: value.pop("model"), "no byte-level BPE"),
    ):
        other = copy.deepcopy(whole)
        change(other)
        (tmp_path / "tokenizer.json").write_text(json.dumps(other))
        with pytest.raises(UserError, match=rf"tokenizer\.json cannot be used: .*{word}"):
            Tokenizer.from_directory(tmp_path)
