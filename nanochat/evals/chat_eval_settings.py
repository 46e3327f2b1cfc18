"""The flags of the evaluation of chat models. Imports nothing heavy."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import tyro

from nanochat.common.errors import UserError
from nanochat.evals.tasks.registry import TASKS, check_names, task_dir_of


@dataclass(frozen=True)
class ChatEvalSettings:
    """Ask a chat model the questions of the tasks, and say how many it answers rightly."""

    GROUPS: ClassVar[dict[str, str]] = {
        "Model": "source model_tag",
        "Questions": "task_name max_problems task_dir persona",
        "Answers": "num_samples max_new_tokens temperature top_k seed",
        "Speed and safety": "batch_size allow_unsafe_execution",
    }

    source: Annotated[Literal["auto", "base", "mid", "sft", "rl", "dpo"], tyro.conf.arg(aliases=["-i"])] = "auto"
    """Stage whose model is asked; auto for the newest finished dpo, rl, sft or mid model."""
    task_name: Annotated[str, tyro.conf.arg(aliases=["-a"])] = ""
    """Tasks, with commas or | between. Default: all of them that ask something."""
    model_tag: str = ""
    """Run whose model to take. Default: the newest."""
    temperature: Annotated[float, tyro.conf.arg(aliases=["-t"])] = 0.0
    """Randomness of answers, 0 or more; 0 for the likeliest token each time."""
    max_new_tokens: Annotated[int, tyro.conf.arg(aliases=["-m"])] = -1
    """Tokens that an answer may take, at most; -1 for each task's own limit."""
    num_samples: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 1
    """Answers to each question; with several, pass@k says how often one of them is right."""
    top_k: Annotated[int, tyro.conf.arg(aliases=["-k"])] = 50
    """Choose among this many likeliest tokens; 0 for all."""
    batch_size: Annotated[int, tyro.conf.arg(aliases=["-b"])] = 32
    """Questions that a rank answers side by side."""
    max_problems: Annotated[int, tyro.conf.arg(aliases=["-x"])] = -1
    """Questions of each task, at most; -1 for all there are, of the endless tasks 256."""
    task_dir: str = ""
    """Directory with local copies of the tasks' datasets, each under its id (openai/gsm8k). Default: the Hugging Face hub."""
    persona: str = ""
    """File that says who the model is, as it was given to its training. Default: the one in nanochat/evals/tasks."""
    allow_unsafe_execution: bool = False
    """Run what the model writes, for HumanEval, without a sandbox where there is none. It can do whatever you can."""
    seed: int = 0
    """Seed of the answers' randomness."""

    def tasks(self) -> list[str]:
        """Names of the tasks. Raises UserError, listing the known names, for one that does not exist."""
        names = [name.strip() for name in self.task_name.replace("|", ",").split(",") if name.strip()]
        check_names(names)
        if "SmolTalk" in names:
            raise UserError("SmolTalk is conversations to learn from and asks nothing: leave it out of --task_name")
        return names or [name for name in TASKS if name != "SmolTalk"]

    def check(self) -> None:
        """Raises UserError for a value that no evaluation can have."""
        self.tasks()
        task_dir_of(self.task_dir)
        for name in ("num_samples", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name}={getattr(self, name)}: must be 1 or more")
        for name in ("max_new_tokens", "max_problems"):
            if getattr(self, name) < 1 and getattr(self, name) != -1:
                raise UserError(f"--{name}={getattr(self, name)}: must be 1 or more, or -1")
        if not 0 <= self.temperature < float("inf") or self.top_k < 0:
            raise UserError("--temperature and --top_k must be 0 or more")
        if self.num_samples > 1 and self.temperature == 0:
            raise UserError(
                f"--num_samples={self.num_samples} at --temperature=0 would be the same answer again and again: give a temperature"
            )
