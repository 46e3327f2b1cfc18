"""ARC: science questions of school exams, an easy and a hard set (arXiv 1803.05457)."""

from typing import Any, ClassVar

from nanochat.common.errors import UserError
from nanochat.evals.tasks.hub import HubDataset, HubExamples, letter_question
from nanochat.evals.tasks.task import Examples, Split, Task, TaskSource
from nanochat.tokenizer.conversation import Conversation

COLUMNS = ["question", "choices", "answerKey"]


class Arc(Task):
    """Mostly four choices, labelled A to E or 1 to 5."""

    kind = "choice"
    chance = 0.25
    config: ClassVar[str]

    def __init__(self, source: TaskSource):
        self._sets = {split: HubDataset("allenai/ai2_arc", self.config, split, COLUMNS, source.task_dir) for split in ("train", "test")}

    def examples(self, split: Split) -> Examples:
        """Questions of a split."""
        return HubExamples(self._sets[split], _question)

    def fingerprint(self, split: Split) -> str | None:
        """See Task."""
        return self._sets[split].fingerprint()


class ArcEasy(Arc):
    """The questions that simple methods answer."""

    name = "ARC-Easy"
    config = "ARC-Easy"


class ArcChallenge(Arc):
    """The questions that word overlap and retrieval both miss."""

    name = "ARC-Challenge"
    config = "ARC-Challenge"


def _question(row: dict[str, Any]) -> Conversation:
    labels, key = [str(label) for label in row["choices"]["label"] if label is not None], str(row["answerKey"])
    if key not in labels:
        raise UserError(f"answer key {key!r} is out of range: the choices are {', '.join(labels)}")
    return letter_question(row["question"], row["choices"]["text"], labels, labels.index(key))
