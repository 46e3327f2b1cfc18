"""A user's own conversations and preferences, from .jsonl files that are checked line by line."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

from nanochat.common.errors import UserError
from nanochat.common.files import sha256_file
from nanochat.tokenizer.conversation import Conversation, check_conversation

T = TypeVar("T")
SHOWN = 3  # bad lines that one message names


class LinesFile(Generic[T]):
    """The lines of a .jsonl, all checked when it is opened. Raises UserError, naming the file and the lines that are wrong."""

    def __init__(self, path: Path, flag: str, make: Callable[[Any], T]):
        self.path = path
        self._lines: list[T] = []
        wrong: list[str] = []
        for number, text in _lines(path, flag):
            try:
                self._lines.append(make(json.loads(text)))
            except json.JSONDecodeError as error:
                wrong.append(f"line {number}: no JSON ({error.msg} at column {error.colno})")
            except (ValueError, RecursionError):  # a number of thousands of digits, lists a thousand deep
                wrong.append(f"line {number}: no JSON that can be read")
            except UserError as error:
                wrong.append(f"line {number}: {error}")
        if wrong:
            more = f"; and {len(wrong) - SHOWN} more lines" if len(wrong) > SHOWN else ""
            raise UserError(f"{path}, {'; '.join(wrong[:SHOWN])}{more}")
        if not self._lines:
            raise UserError(f"{flag}: {path} has no line with anything in it")

    def __len__(self) -> int:
        """Lines that are not blank."""
        return len(self._lines)

    def __getitem__(self, number: int) -> T:
        """Line `number`, from 0, without the blank ones."""
        return self._lines[number]

    def fingerprint(self) -> str:
        """A text that changes with the file."""
        return hashlib.sha256(f"{type(self).__name__}/{sha256_file(self.path)}".encode()).hexdigest()


def _lines(path: Path, flag: str) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers from 1."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line
    except UnicodeDecodeError:
        raise UserError(f"{flag}: {path} is no text in UTF-8; a .jsonl is expected, one JSON object a line") from None
    except OSError as error:
        raise UserError(f"{flag}: {path} cannot be read ({error.strerror})") from None


class ConversationFile(LinesFile[Conversation]):
    """Conversations, one a line: {"messages": […]}, or the bare list of messages."""

    def __init__(self, path: Path):
        super().__init__(path, "--conversations", _conversation)


def _conversation(value: Any) -> Conversation:
    conversation = {"messages": value} if isinstance(value, list) else value
    check_conversation(conversation)
    if all(message["role"] != "assistant" for message in conversation["messages"]):
        raise UserError("there is no assistant message to learn from")
    return {"messages": conversation["messages"]}


class PreferenceFile(LinesFile[tuple[Conversation, Conversation]]):
    """Preferences, one a line: {"prompt", "chosen", "rejected"}; each a text, or messages.

    Gives the chosen and the rejected conversation.
    """

    def __init__(self, path: Path):
        super().__init__(path, "--preferences", _preference)


def _preference(value: Any) -> tuple[Conversation, Conversation]:
    if not isinstance(value, dict) or not {"prompt", "chosen", "rejected"} <= value.keys():
        raise UserError('no preference: an object {"prompt": …, "chosen": …, "rejected": …} is expected')
    prompt = [{"role": "user", "content": value["prompt"]}] if isinstance(value["prompt"], str) else value["prompt"]
    check_conversation({"messages": prompt})
    if prompt[-1]["role"] != "user":
        raise UserError("the prompt does not end with a user message")
    chosen, rejected = (_reply(value[key], key) for key in ("chosen", "rejected"))
    if chosen == rejected:
        raise UserError("chosen and rejected are the same")
    both = tuple({"messages": [*prompt, {"role": "assistant", "content": reply}]} for reply in (chosen, rejected))
    for conversation, key in zip(both, ("chosen", "rejected"), strict=True):
        try:
            check_conversation(conversation)
        except UserError as error:
            raise UserError(f"{key}: {error}") from None
    return both[0], both[1]


def _reply(value: Any, key: str) -> Any:
    """The content of a reply that is a text, or one assistant message in a list."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict) and value[0].get("role") == "assistant":
        return value[0].get("content")
    raise UserError(f"{key} is neither a text nor a list with one assistant message")
