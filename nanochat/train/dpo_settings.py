"""The flags of preference learning. Imports nothing heavy."""

from dataclasses import dataclass
from typing import ClassVar

from nanochat.common.errors import UserError
from nanochat.train.chat_settings import StageSettings
from nanochat.train.settings import OFF


@dataclass(frozen=True)
class DpoSettings(StageSettings):
    """Learn from preferences, such as thumbs up and down; the same command again goes on where it stopped."""

    GROUPS: ClassVar[dict[str, str]] = {
        "What is learned": "preferences beta pairs_per_step",
        **StageSettings.GROUPS,
        "Length of the run": "num_epochs num_iterations",
    }

    source: str = ""
    """Stage whose model to start from (base, mid, sft, rl, dpo), or a directory of a model or a checkpoint. Default: rl, else sft, else
    mid."""
    preferences: str = ""
    """Your preferences, a .jsonl with {"prompt", "chosen", "rejected"} in each line. Required."""
    beta: float = 0.1
    """DPO's β, more than 0: how closely the model keeps to the one it starts from; the larger, the closer."""
    pairs_per_step: int = 32
    """Pairs of a step, over all ranks; fewer when the file has fewer."""
    num_epochs: float = 1.0
    """Passes over the pairs, which make the steps where --num_iterations is -1."""
    max_seq_len: int = OFF
    """Tokens of a prompt with its reply, at most; longer pairs are left out; -1 for the model's context."""
    total_batch_size: int = OFF
    """Not for this stage: a step is --pairs_per_step pairs. Default: left out."""
    device_batch_size: int = 8
    """Replies a GPU learns from per pass, at most; a pair is two."""
    micro_batch_size: int = OFF
    """Replies that a GPU holds at once, an even number; -1 for the planner's choice, at most --device_batch_size."""
    init_lr_frac: float = 0.01
    warmdown_ratio: float = 1.0
    compile: bool = False
    sample_every: int = 100
    eval_every: int = OFF
    """Not used by this stage, which holds no pairs out."""
    eval_tokens: int = 524_288
    """Not used by this stage, which holds no pairs out."""

    INHERITED: ClassVar[tuple[str, ...]] = ("total_batch_size", "max_seq_len")

    def check(self) -> None:
        """Raises UserError for a value that no run can have."""
        super().check()
        if not self.preferences:
            raise UserError('--preferences is missing: give a .jsonl with {"prompt", "chosen", "rejected"} in each line')
        if not 0 < self.beta < float("inf"):
            raise UserError(f"--beta={self.beta}: must be more than 0")
        if self.pairs_per_step < 1:
            raise UserError(f"--pairs_per_step={self.pairs_per_step}: must be 1 or more")
        if not 0 < self.num_epochs < float("inf"):
            raise UserError(f"--num_epochs={self.num_epochs}: must be more than 0")
        if self.total_batch_size != OFF:
            raise UserError("--total_batch_size: here a step is --pairs_per_step pairs; leave it out")
        if self.micro_batch_size != OFF and self.micro_batch_size % 2:
            raise UserError(f"--micro_batch_size={self.micro_batch_size}: a pair is two replies, so it must be even")
