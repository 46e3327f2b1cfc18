"""The flags of preference learning. Imports nothing heavy."""

from dataclasses import dataclass
from typing import ClassVar

from nanochat.common.errors import UserError
from nanochat.train.chat_settings import StageSettings
from nanochat.train.settings import OFF


@dataclass(frozen=True)
class DpoSettings(StageSettings):
    """Learn from preferences, such as thumbs up and down; the same command again goes on where it stopped."""

    preferences: str = ""
    """Your preferences, a .jsonl with {"prompt", "chosen", "rejected"} in each line; required."""
    beta: float = 0.1
    """How closely the model keeps to the one it starts from: DPO's β."""
    pairs_per_step: int = 32
    """Pairs of a step, over all ranks; fewer when the file has fewer."""
    num_epochs: float = 1.0
    """Passes over the pairs, which fix the steps."""
    device_batch_size: int = 8
    """Replies a GPU learns from per pass, at most; a pair is two."""
    init_lr_frac: float = 0.01
    """Share of all learning rates that is used; later stages go on more gently."""
    warmdown_ratio: float = 1.0
    """Share of the run over which learning rates fall at its end."""
    compile: bool = False
    """Compile the blocks and the loss."""
    sample_every: int = 100
    """Steps between samples of answers; -1 for never."""
    eval_every: int = OFF
    """Unused here: there is no held-out set."""

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
