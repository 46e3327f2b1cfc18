"""The flags of the evaluation of base models. Imports nothing heavy."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from nanochat.common.errors import UserError


@dataclass(frozen=True)
class BaseEvalSettings:
    """CORE: ask a model the 22 tasks of the DCLM paper, and count the questions that stand in its training text."""

    source: Annotated[Literal["base", "mid", "sft", "rl", "dpo"], tyro.conf.arg(aliases=["-i"])] = "base"
    """Stage whose model is asked."""
    model_tag: str = ""
    """Run whose model to take. Default: the newest."""
    bundle: str = ""
    """CORE's tasks: a directory, a zip, or `small` for the little ones of this project. Default: CORE's own, fetched once."""
    max_per_task: int = -1
    """Questions of each task, at most; -1 for all."""
    tokens_at_once: int = 16_384
    """Tokens of a batch of questions, padding included."""
    overlap_shards: int = 8
    """Text shards of the training text to look for the questions in; 0 for none, -1 for all."""
    data: str | None = None
    """Training text, by name, to look for the questions in. Default: the one that the model was trained on."""

    def check(self) -> None:
        """Raises UserError for a value that no evaluation can have."""
        if self.max_per_task < 1 and self.max_per_task != -1:
            raise UserError(f"--max_per_task={self.max_per_task}: must be 1 or more, or -1 for all")
        if self.tokens_at_once < 1:
            raise UserError(f"--tokens_at_once={self.tokens_at_once}: must be 1 or more")
        if self.overlap_shards < -1:
            raise UserError(f"--overlap_shards={self.overlap_shards}: must be 0 or more, or -1 for all")
