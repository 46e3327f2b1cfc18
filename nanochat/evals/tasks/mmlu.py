"""MMLU: multiple-choice questions of 57 subjects (arXiv 2009.03300)."""

from string import ascii_uppercase
from typing import Any

from nanochat.evals.tasks.hub import HubDataset, HubExamples, letter_question
from nanochat.evals.tasks.task import Examples, Split, Task, TaskSource
from nanochat.tokenizer.conversation import Conversation

SPLITS: dict[Split, str] = {"train": "auxiliary_train", "test": "test"}
COLUMNS = ["question", "subject", "choices", "answer"]


class MMLU(Task):
    """Four choices; trained on the auxiliary set, asked the test set."""

    name = "MMLU"
    kind = "choice"
    chance = 0.25

    def __init__(self, source: TaskSource):
        self._sets = {split: HubDataset("cais/mmlu", "all", theirs, COLUMNS, source.task_dir) for split, theirs in SPLITS.items()}

    def examples(self, split: Split) -> Examples:
        """Questions of a split."""
        return HubExamples(self._sets[split], _question)

    def fingerprint(self, split: Split) -> str | None:
        """See Task."""
        return self._sets[split].fingerprint()


def _question(row: dict[str, Any]) -> Conversation:
    letters = ascii_uppercase[: len(row["choices"])]
    return {**letter_question(row["question"], row["choices"], letters, row["answer"]), "subject": row["subject"]}
