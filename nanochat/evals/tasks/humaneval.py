"""HumanEval: functions to be written, judged by running them (arXiv 2107.03374)."""

from typing import Any

from nanochat.common.errors import UserError
from nanochat.evals.tasks.hub import HubDataset, HubExamples
from nanochat.evals.tasks.task import Examples, Split, Task, TaskSource
from nanochat.tokenizer.conversation import Conversation

COLUMNS = ["task_id", "prompt", "canonical_solution", "test", "entry_point"]


class HumanEval(Task):
    """164 functions: the model is given the head and the docstring. What it writes runs in the sandbox only."""

    name = "HumanEval"
    kind = "answer"
    max_new_tokens = 512
    runs_code = True

    def __init__(self, source: TaskSource):
        self._set = HubDataset("openai/openai_humaneval", "openai_humaneval", "test", COLUMNS, source.task_dir)
        self._allow_unsafe = bool(getattr(source, "allow_unsafe_execution", False))

    def examples(self, split: Split) -> Examples:
        """The problems; they are for evaluation only."""
        if split == "train":
            raise UserError("HumanEval is an evaluation and has nothing to train on: leave it out of --tasks")
        return HubExamples(self._set, _problem)

    def correct(self, example: Conversation, reply: str) -> bool:
        """Whether the program that the reply means passes the problem's tests. Raises SandboxUnavailable where nothing may run."""
        from nanochat.sandbox.human_eval import check_program

        return check_program(example["prompt"], reply, example["test"], example["entry_point"], allow_unsafe=self._allow_unsafe).passed


def _problem(row: dict[str, Any]) -> Conversation:
    asked = f"Complete this Python function.\n\n{row['prompt']}"
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": row["prompt"] + row["canonical_solution"]}]
    return {"messages": messages, **{key: row[key] for key in COLUMNS}}
