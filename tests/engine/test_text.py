"""Tokens as text: whole characters, whole stop strings, the kinds of an answer's parts."""

from hypothesis import given
from hypothesis import strategies as st

from nanochat.engine.text import Piece, TextStream
from nanochat.tokenizer.tokenizer import Tokenizer

BYTES = Tokenizer.from_ranks({bytes([byte]): byte for byte in range(256)})


def pieces(stream: TextStream, ids: list[int], at_once: int) -> list[Piece]:
    out: list[Piece] = []
    for start in range(0, len(ids), at_once):
        out += stream.push(ids[start : start + at_once])
    return out + stream.finish()


@given(text=st.text(max_size=40), at_once=st.integers(1, 5))
def test_characters_come_whole_and_nothing_is_lost(text: str, at_once: int) -> None:
    text = text.encode("utf-8", "replace").decode()
    out = pieces(TextStream(BYTES), BYTES.encode(text), at_once)
    assert "".join(piece.text for piece in out) == text
    assert all("\ufffd" not in piece.text for piece in out) or "\ufffd" in text


def test_bytes_that_are_no_text_are_shown_as_such() -> None:
    out = pieces(TextStream(BYTES), [0xE2, 0x82, 65, 0xF0], 1)
    assert "".join(piece.text for piece in out) == "\ufffdA\ufffd"


@given(
    text=st.text("ab<\u20ac", max_size=30),
    stop=st.lists(st.text("ab<\u20ac", min_size=1, max_size=4), max_size=3),
    at_once=st.integers(1, 4),
)
def test_nothing_of_a_stop_string_or_after_it_is_shown(text: str, stop: list[str], at_once: int) -> None:
    stream = TextStream(BYTES, stop)
    shown = "".join(piece.text for piece in pieces(stream, BYTES.encode(text), at_once))
    ends = [text.find(each) for each in stop if each in text]
    if not ends:
        assert shown == text
        assert not stream.stopped
        return
    assert stream.stopped
    assert text.startswith(shown)
    assert not any(each in shown for each in stop)
    first = min(place + len(each) for each in stop for place in [text.find(each)] if place >= 0)
    assert any(text[len(shown) :].startswith(each) for each in stop)
    assert len(shown) <= first


def test_tool_calls_are_told_apart_and_end_with_no_stop_string() -> None:
    special = BYTES.special_tokens
    ids = [
        *BYTES.encode("So "),
        special["<|python_start|>"],
        *BYTES.encode("6*7"),
        special["<|python_end|>"],
        special["<|output_start|>"],
        *BYTES.encode("42"),
        special["<|output_end|>"],
        *BYTES.encode("it is 42. END no"),
    ]
    joined: list[tuple[str, str]] = []
    for piece in pieces(TextStream(BYTES, ["END", "*7"]), ids, 1):
        if joined and joined[-1][0] == piece.kind:
            joined[-1] = (piece.kind, joined[-1][1] + piece.text)
        else:
            joined.append((piece.kind, piece.text))
    assert joined == [("text", "So "), ("python", "6*7"), ("python_output", "42"), ("text", "it is 42. ")]
