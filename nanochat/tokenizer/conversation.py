"""Conversations as token ids, and which of these the model learns to say.

A conversation is `{"messages": [{"role", "content"}, …]}`: a `system` message first if any, then `user` and `assistant` in turns.
The content of an assistant's message is a string, or parts `{"type", "text"}` of type `text`, `python` (a tool call) or
`python_output` (what the tool answered).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nanochat.common.errors import UserError
from nanochat.tokenizer.tokenizer import Tokenizer

Conversation = Mapping[str, Any]

ROLES = ("system", "user", "assistant")
PARTS = {"text": None, "python": ("<|python_start|>", "<|python_end|>"), "python_output": ("<|output_start|>", "<|output_end|>")}
"""The part types, with the special tokens around each."""
SYSTEM_BORDER = "\n\n"
"""Between a system message and the first user message, which it becomes the beginning of."""


@dataclass(frozen=True)
class Rendered:
    """A conversation as tokens."""

    ids: list[int]
    """Token ids, `<|bos|>` first."""
    mask: list[bool]
    """For each id whether the model is to learn to say it: the assistant's words, its tool calls and its end."""


def check_conversation(conversation: Any) -> None:
    """Raises UserError, naming the message by its number (from 1), for what is no conversation."""
    if not isinstance(conversation, Mapping) or "messages" not in conversation:
        raise UserError('no conversation: an object {"messages": [{"role": …, "content": …}, …]} is expected')
    messages = conversation["messages"]
    if not isinstance(messages, list) or not messages:
        raise UserError('"messages" is empty or no list: give a user message and an assistant message at least')
    expected = ""
    for number, message in enumerate(messages, 1):
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise UserError(f'message {number} is no object {{"role": …, "content": …}}')
        role = message["role"]
        if role not in ROLES:
            raise UserError(f"message {number}: unknown role {role!r}; the roles are {', '.join(ROLES)}")
        if role == "system":
            if number > 1:
                raise UserError(f"message {number}: a system message can only be the first")
            expected = "user"
        elif role != (expected or "user"):
            raise UserError(
                f"message {number}: {_a(role)} turn where {_a(expected or 'user')} turn belongs: user and assistant take turns, user first"
            )
        else:
            expected = "assistant" if role == "user" else "user"
        _check_content(number, role, message["content"])
    if len(messages) == 1 and messages[0]["role"] == "system":
        raise UserError("message 1 is a system message and nothing follows: give a user message and an assistant message at least")


def _a(role: str) -> str:
    return f"{'an' if role == 'assistant' else 'a'} {role}"


def _check_content(number: int, role: str, content: Any) -> None:
    if isinstance(content, str):
        if not content:
            raise UserError(f"message {number} ({role}) is empty")
        return
    if role != "assistant":
        raise UserError(f"message {number} ({role}): its content must be a string")
    if not isinstance(content, list) or not content:
        raise UserError(f"message {number} (assistant): its content must be a string or a list of parts")
    for part in content:
        if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
            raise UserError(f'message {number} (assistant): a part is no object {{"type": …, "text": "…"}}')
        if not isinstance(part.get("type"), str) or part["type"] not in PARTS:
            raise UserError(f"message {number} (assistant): unknown part {part.get('type')!r}; the parts are {', '.join(PARTS)}")
    if not any(part["text"] for part in content):
        raise UserError(f"message {number} (assistant) is empty")


def _turns(conversation: Conversation) -> Iterator[tuple[str, Any]]:
    """Role and content of the user's and the assistant's messages; a system message is put before the first of the user's."""
    system = ""
    for message in conversation["messages"]:
        role, content = message["role"], message["content"]
        if role == "system":
            system = content + SYSTEM_BORDER
        elif system:
            yield role, system + content
            system = ""
        else:
            yield role, content


def _parts(content: Any) -> Iterator[tuple[str, str]]:
    """Type and text of an assistant's parts; neighbouring texts are one, since no special token tells them apart."""
    text = ""
    for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
        if part["type"] == "text":
            text += part["text"]
            continue
        if text:
            yield "text", text
            text = ""
        yield part["type"], part["text"]
    if text:
        yield "text", text


@dataclass(frozen=True)
class Fitted:
    """The prompt of a conversation, as much of it as a model takes."""

    ids: list[int]
    """Its tokens."""
    tokens: int
    """Those of the whole conversation."""
    left_out: int
    """Messages that are not in it, the oldest."""


class Renderer:
    """Turns conversations into tokens of one tokenizer."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer

    def _special(self, name: str) -> list[int]:
        return [self.tokenizer.special_id(name)]

    def __call__(self, conversation: Conversation) -> Rendered:
        """The tokens of a whole conversation, which `check_conversation` has nothing against.

        Each of its messages is closed by the token that ends its turn.
        """
        out = Rendered([self.tokenizer.bos_id], [False])

        def add(ids: list[int], learned: bool) -> None:
            out.ids.extend(ids)
            out.mask.extend([learned] * len(ids))

        for role, content in _turns(conversation):
            if role == "user":
                add([*self._special("<|user_start|>"), *self.tokenizer.encode(content), *self._special("<|user_end|>")], False)
                continue
            add(self._special("<|assistant_start|>"), False)
            for kind, text in _parts(content):
                ids, around = self.tokenizer.encode(text), PARTS[kind]
                if around:
                    ids = [*self._special(around[0]), *ids, *self._special(around[1])]
                add(ids, kind != "python_output")
            add(self._special("<|assistant_end|>"), True)
        return out

    def prompt(self, conversation: Conversation) -> list[int]:
        """The tokens of a conversation that ends with a user message, up to and with `<|assistant_start|>`: the model is to go on."""
        return [*self(conversation).ids, *self._special("<|assistant_start|>")]

    def fitted(self, messages: Sequence[Mapping[str, Any]], context: int, answer: int) -> Fitted:
        """The prompt of a conversation that may have outgrown the model: its oldest turns are left out, and a system message stays.

        answer: tokens to leave for it, a quarter of the context at most. Raises UserError when the last message alone is too long.
        """
        first = 1 if messages[0]["role"] == "system" else 0
        limit = context - min(answer, context // 4)

        def without(turns: int) -> list[int]:
            return self.prompt({"messages": [*messages[:first], *messages[first + 2 * turns :]]})

        whole = without(0)
        low, high = 0, (len(messages) - first - 1) // 2
        while low < high:  # the prompt shortens with every turn that it is without
            middle = (low + high) // 2
            low, high = (low, middle) if len(without(middle)) <= limit else (middle + 1, high)
        ids = without(low) if low else whole
        if len(ids) >= context:
            raise UserError(f"this has {len(ids):,} tokens; the model takes {context:,}, its answer included")
        return Fitted(ids, len(whole), 2 * low)


def question_of(conversation: Conversation) -> Conversation:
    """The conversation without its last message, the assistant's: what the model is asked."""
    return {"messages": conversation["messages"][:-1]}


def text_of(content: Any) -> str:
    """The words of a message, without tool calls and their outputs."""
    return content if isinstance(content, str) else "".join(part["text"] for part in content if part["type"] == "text")


def parts_of(tokenizer: Tokenizer, ids: list[int]) -> list[dict[str, str]]:
    """The content of an assistant's message from its tokens, after `<|assistant_start|>` and without `<|assistant_end|>`.

    Special tokens that do not stand where they belong are left out.
    """
    opening = {tokenizer.special_id(around[0]): kind for kind, around in PARTS.items() if around}
    specials = set(tokenizer.special_tokens.values())
    parts: list[dict[str, str]] = []
    kind = "text"
    held: list[int] = []

    def close() -> None:
        if held or kind != "text":
            parts.append({"type": kind, "text": tokenizer.decode(held)})
        held.clear()

    for token in ids:
        if token not in specials:
            held.append(token)
            continue
        close()
        kind = opening.get(token, "text")
    close()
    return parts
