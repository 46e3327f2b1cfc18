"""A user's own conversations and preferences: what is good is read, what is not is named by its line."""

import json
from pathlib import Path
from typing import Any

import pytest

from nanochat.common.errors import UserError
from nanochat.data.conversation_file import ConversationFile, PreferenceFile

GOOD = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
TWO_USERS = {"messages": [{"role": "user", "content": "hi"}, {"role": "user", "content": "again"}]}


def file_of(tmp_path: Path, *lines: Any) -> Path:
    path = tmp_path / "mine.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines), encoding="utf-8")
    return path


def test_both_shapes_blank_lines_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = file_of(tmp_path, GOOD, "", GOOD["messages"], "   ")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    file = ConversationFile(path)
    assert len(file) == 2
    assert file[0] == file[1] == GOOD
    before = file.fingerprint()
    path.write_bytes(path.read_bytes().replace(b"hello", b"jello"))
    assert ConversationFile(path).fingerprint() != before


def parts_of_type(kind: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": [{"type": kind, "text": "yes"}]}]}


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([TWO_USERS], ["line 1: message 2", "assistant turn"]),
        ([GOOD, "", "{"], ["line 3: no JSON"]),
        ([GOOD, {"messages": []}], ["line 2", "empty"]),
        ([{"messages": [{"role": "user", "content": "hi"}]}], ["line 1", "no assistant message"]),
        (["3"], ["line 1", "no conversation"]),
        ([TWO_USERS] * 5, ["line 1", "line 2", "line 3", "and 2 more lines"]),
        ([GOOD, '{"messages": ' + "9" * 5_000 + "}"], ["line 2", "no JSON that can be read"]),
        (["[" * 100_000], ["line 1", "no JSON that can be read"]),
        ([parts_of_type(["text"]), parts_of_type({})], ["line 1: message 2 (assistant): unknown part ['text']", "line 2"]),
        ([], ["no line"]),
        (["", " "], ["no line"]),
    ],
)
def test_bad_lines_are_named(lines: list[Any], words: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        ConversationFile(file_of(tmp_path, *lines))
    for word in (*words, "mine.jsonl"):
        assert word in str(caught.value)


def test_what_is_no_file_of_text(tmp_path: Path) -> None:
    (tmp_path / "binary.jsonl").write_bytes(b"\x89PNG\xff\xfe\x00")
    for name, word in (("none.jsonl", "No such file"), ("", "directory"), ("binary.jsonl", "UTF-8")):
        with pytest.raises(UserError, match=word):
            ConversationFile(tmp_path / name)


PAIR = {"prompt": "2 + 3?", "chosen": "5", "rejected": "6"}


def test_preferences_in_both_shapes(tmp_path: Path) -> None:
    as_messages = {
        "prompt": [{"role": "user", "content": "2 + 3?"}],
        "chosen": [{"role": "assistant", "content": "5"}],
        "rejected": [{"role": "assistant", "content": "6"}],
    }
    file = PreferenceFile(file_of(tmp_path, PAIR, as_messages))
    assert file[0] == file[1]
    chosen, rejected = file[0]
    assert [message["content"] for message in chosen["messages"]] == ["2 + 3?", "5"]
    assert rejected["messages"][-1] == {"role": "assistant", "content": "6"}


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ({"prompt": "a", "chosen": "b"}, "no preference"),
        ({**PAIR, "rejected": "5"}, "the same"),
        ({**PAIR, "chosen": ""}, "chosen: message 2"),
        ({**PAIR, "prompt": ""}, "message 1"),
        ({**PAIR, "prompt": GOOD["messages"]}, "does not end with a user message"),
        ({**PAIR, "chosen": 5}, "chosen is neither"),
        ("[]", "no preference"),
    ],
)
def test_bad_preferences_are_named(line: Any, word: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=word) as caught:
        PreferenceFile(file_of(tmp_path, PAIR, line))
    assert "line 2" in str(caught.value)
