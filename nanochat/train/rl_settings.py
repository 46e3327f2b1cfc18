"""The flags of reinforcement learning. Imports nothing heavy."""

from dataclasses import dataclass
from typing import ClassVar

from nanochat.common.errors import UserError
from nanochat.evals.tasks.registry import check_names, task_dir_of
from nanochat.train.chat_settings import StageSettings
from nanochat.train.settings import OFF

LEARNABLE = ("GSM8K", "Arithmetic", "WordProblems", "SpellingBee", "Instructions")
"""Tasks whose answers a program can check without running code."""


@dataclass(frozen=True)
class RlSettings(StageSettings):
    """Policy gradient on tasks whose answers can be checked; the same command again goes on where it stopped."""

    GROUPS: ClassVar[dict[str, str]] = {
        "What is learned": "tasks task_dir examples_per_step num_samples max_new_tokens temperature top_k",
        **StageSettings.GROUPS,
        "Length of the run": "num_epochs num_iterations",
        "Evaluation": "eval_every eval_examples eval_tokens sample_every",
    }

    source: str = ""
    """Stage whose model to start from (base, mid, sft, rl, dpo), or a directory of a model or a checkpoint. Default: sft, else mid."""
    tasks: str = "GSM8K"
    """Tasks to learn, with commas between: GSM8K, Arithmetic, WordProblems, SpellingBee, Instructions."""
    task_dir: str = ""
    """Directory with local copies of the tasks' datasets, each under its id (openai/gsm8k). Default: the Hugging Face hub."""
    examples_per_step: int = 16
    """Questions of a step, over all ranks."""
    num_samples: int = 16
    """Answers to each question, 2 or more: each is held against the mean of the others."""
    max_new_tokens: int = 256
    """Tokens that an answer may take, at most."""
    temperature: float = 1.0
    """Randomness of the answers, more than 0; 1 for the model's own probabilities."""
    top_k: int = 50
    """Choose among this many likeliest tokens; 0 for all."""
    num_epochs: float = 1.0
    """Passes over the questions, of an endless task 8,000, which make the steps where --num_iterations is -1."""
    max_seq_len: int = OFF
    """Tokens of a question with its answer, at most; -1 for the model's context."""
    total_batch_size: int = OFF
    """Not for this stage: a step is --examples_per_step × --num_samples answers. Default: left out."""
    device_batch_size: int = 8
    """Answers a GPU learns from per pass, at most."""
    micro_batch_size: int = OFF
    """Answers that a GPU holds at once; -1 for the planner's choice, at most --device_batch_size."""
    init_lr_frac: float = 0.05
    warmdown_ratio: float = 1.0
    compile: bool = False
    eval_every: int = 60
    """Steps between evaluations on held-out questions, with one at the end; -1 for never."""
    eval_examples: int = 400
    """Held-out questions of each task in an evaluation, at most."""
    eval_tokens: int = 524_288
    """Not used by this stage, which counts questions."""
    sample_every: int = 60
    save_every: int = 60

    INHERITED: ClassVar[tuple[str, ...]] = ("total_batch_size", "max_seq_len")

    def check(self) -> None:
        """Raises UserError for a value that no run can have."""
        super().check()
        for name in ("examples_per_step", "max_new_tokens", "eval_examples"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name}={getattr(self, name)}: must be 1 or more")
        if self.num_samples < 2:
            raise UserError(f"--num_samples={self.num_samples}: must be 2 or more: an answer is held against the others to its question")
        if not 0 < self.temperature < float("inf") or self.top_k < 0:
            raise UserError("--temperature must be more than 0, --top_k 0 or more")
        if not 0 < self.num_epochs < float("inf"):
            raise UserError(f"--num_epochs={self.num_epochs}: must be more than 0")
        if self.total_batch_size != OFF:
            raise UserError("--total_batch_size: here a step is --examples_per_step × --num_samples answers; leave it out")
        self.task_names()
        task_dir_of(self.task_dir)

    def task_names(self) -> list[str]:
        """The tasks. Raises UserError for one that does not exist or cannot be learned so."""
        names = [name.strip() for name in self.tasks.replace("|", ",").split(",") if name.strip()]
        check_names(names)
        if wrong := [name for name in names if name not in LEARNABLE] or (not names and [self.tasks]):
            raise UserError(f"--tasks: {wrong[0]!r} cannot be learned by its reward; these can: {', '.join(LEARNABLE)}")
        return names
