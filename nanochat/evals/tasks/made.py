"""Tasks whose questions are made here: no download, no end, and no question of the test set among those trained on."""

import hashlib
import random
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from nanochat.evals.tasks.task import ENDLESS, Examples, Split, Task
from nanochat.tokenizer.conversation import Conversation

TEST_SHARE = 16  # one question in so many is for the test


@dataclass(frozen=True)
class Made:
    """A question with its answer."""

    key: str
    """What is asked, however it is worded: it decides which split the question belongs to."""
    question: str
    reply: str | list[dict[str, str]]
    """The right assistant message: a string, or parts with tool calls."""
    answer: str
    """The answer alone."""
    more: Mapping[str, Any] | None = None
    """Further keys of the example, for `Task.correct`."""


def split_of(key: str) -> Split:
    """The split that a question belongs to, by a hash of what it asks."""
    return "test" if hashlib.sha256(key.encode()).digest()[0] % TEST_SHARE == 0 else "train"


class MadeExamples:
    """Examples of a made task: number i is drawn anew, from a seed of the task, the split and i, until it belongs to the split."""

    def __init__(self, task: "MadeTask", split: Split):
        self.task, self.split = task, split

    def __len__(self) -> int:
        """They never end."""
        return ENDLESS

    def __getitem__(self, number: int) -> Conversation:
        """Example `number`."""
        rng = random.Random(f"{self.task.name} {self.split} {number}")
        made = self.task.make(rng)
        while split_of(made.key) != self.split:
            made = self.task.make(rng)
        messages = [{"role": "user", "content": made.question}, {"role": "assistant", "content": made.reply}]
        return {"messages": messages, "answer": made.answer, **(made.more or {})}


class MadeTask(Task):
    """A task that makes its questions."""

    kind = "answer"
    max_new_tokens = 96

    @abstractmethod
    def make(self, rng: random.Random) -> Made:
        """A question drawn with `rng`."""

    def examples(self, split: Split) -> Examples:
        """Endless examples of a split."""
        return MadeExamples(self, split)


@cache
def words() -> tuple[str, ...]:
    """Common English words, lower case."""
    return tuple((Path(__file__).parent / "words.txt").read_text(encoding="utf-8").split())


def tool_call(expression: str, output: str) -> list[dict[str, str]]:
    """The parts of a tool call and its answer."""
    return [{"type": "python", "text": expression}, {"type": "python_output", "text": output}]
