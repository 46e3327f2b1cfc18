"""All tasks by their names."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nanochat.common.errors import UserError
from nanochat.common.paths import named_path
from nanochat.evals.tasks.arc import ArcChallenge, ArcEasy
from nanochat.evals.tasks.arithmetic import Arithmetic, WordProblems
from nanochat.evals.tasks.gsm8k import GSM8K
from nanochat.evals.tasks.humaneval import HumanEval
from nanochat.evals.tasks.identity import Identity, Persona
from nanochat.evals.tasks.instructions import Instructions
from nanochat.evals.tasks.mmlu import MMLU
from nanochat.evals.tasks.smoltalk import SmolTalk
from nanochat.evals.tasks.spelling import SimpleSpelling, SpellingBee
from nanochat.evals.tasks.task import Task, TaskSource


@dataclass(frozen=True)
class TaskOptions(TaskSource):
    """What the making of tasks depends on."""

    persona: Persona = field(default_factory=Persona.of)
    """Who the model is, for Identity."""
    allow_unsafe_execution: bool = False
    """Run model-written code without a sandbox where there is none."""


TASKS: dict[str, Callable[[TaskOptions], Task]] = {
    "SmolTalk": SmolTalk,
    "MMLU": MMLU,
    "ARC-Easy": ArcEasy,
    "ARC-Challenge": ArcChallenge,
    "GSM8K": GSM8K,
    "HumanEval": HumanEval,
    "SpellingBee": lambda options: SpellingBee(),
    "SimpleSpelling": lambda options: SimpleSpelling(),
    "Arithmetic": lambda options: Arithmetic(),
    "WordProblems": lambda options: WordProblems(),
    "Instructions": lambda options: Instructions(),
    "Identity": lambda options: Identity(options.persona),
}
"""What makes each task. SmolTalk is only talked about, not asked: it has no evaluation."""

CHAT_CORE = ("ARC-Easy", "ARC-Challenge", "MMLU", "GSM8K", "HumanEval", "SpellingBee")
"""The tasks of ChatCORE, nanochat's."""


def check_names(names: Sequence[str]) -> None:
    """Raises UserError, listing the known names, for one that is not among them."""
    for name in names:
        if name not in TASKS:
            raise UserError(f"there is no task {name!r}; the tasks are {', '.join(TASKS)}")


def find_tasks(names: Sequence[str], options: TaskOptions) -> list[Task]:
    """The tasks of these names, in their order. Raises UserError, listing the known names, for one that is not among them."""
    check_names(names)
    return [TASKS[name](options) for name in names]


def task_dir_of(path: str) -> Path | None:
    """The directory that `--task_dir` names, or None where it is not given. Raises UserError where it is not there."""
    if not path:
        return None
    directory = named_path(path)
    if not directory.is_dir():
        raise UserError(f"--task_dir={path}: there is no such directory")
    return directory
