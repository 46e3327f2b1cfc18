"""What a task is."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Protocol

from nanochat.common.errors import UserError
from nanochat.tokenizer.conversation import Conversation

Split = Literal["train", "test"]
Kind = Literal["talk", "choice", "answer"]


class Examples(Protocol):
    """Conversations by their numbers, each a pure function of its number: full ones, that end with the right assistant message.

    One of a task of kind "choice" also has "letters", the letters to choose from, and its last message is the right letter alone.
    It may have more keys, which `Task.correct` reads; `Renderer` reads "messages" only.
    """

    def __len__(self) -> int:
        """How many there are; ENDLESS where they are made here."""

    def __getitem__(self, number: int) -> Conversation:
        """Conversation `number`, from 0."""


ENDLESS = 2**40
"""The length of examples that never end."""


@dataclass(frozen=True)
class TaskSource:
    """Where tasks find what they need, the same for all of them."""

    task_dir: Path | None = None
    """A directory with local copies, one directory a dataset under its id (`openai/gsm8k`); None for the hub."""


class TaskUnavailable(UserError):
    """The examples of a task cannot be had now, though the request was right: the hub cannot be reached, say. Other tasks go on."""


class Task(ABC):
    """A training set and an evaluation. A constructor reads nothing: that comes with `examples`."""

    name: ClassVar[str]
    """As the field spells it: `ARC-Easy`."""
    kind: ClassVar[Kind]
    """talk: only trained on; choice: asked for one of the letters; answer: asked for words, which `correct` judges."""
    chance: ClassVar[float] = 0.0
    """Accuracy of guessing, which is 0 on the centred scale of ChatCORE."""
    nominal: ClassVar[int] = 0
    """Conversations of one pass of a training mixture, for endless tasks; others go by their length."""
    max_new_tokens: ClassVar[int] = 512
    """Tokens that an answer may take."""
    runs_code: ClassVar[bool] = False
    """Whether `correct` runs what the model wrote."""

    @abstractmethod
    def examples(self, split: Split) -> Examples:
        """The examples of a split; the two have no question in common.

        Raises UserError where the task has no such split, a copy is damaged or an answer key is out of range (naming file and row),
        TaskUnavailable where the examples cannot be had now.
        """

    def fingerprint(self, split: Split) -> str | None:
        """A short text that changes when the examples of a split do, for keeping what was made from them; None: do not keep."""
        return None

    def correct(self, example: Conversation, reply: str) -> bool:
        """Whether the model's words (tool calls and their outputs left out) answer the example; for tasks of kind "answer"."""
        raise NotImplementedError
