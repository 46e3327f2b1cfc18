"""The flags of the training benchmark."""

from dataclasses import dataclass
from typing import Literal

from nanochat.common.errors import UserError
from nanochat.plan import sizes


@dataclass(frozen=True)
class BenchTrainSettings:
    """Time the training step on random data and weights; the defaults are the rehearsal's shape."""

    depth: int = 4
    """Layers."""
    vocab_size: int = 4096
    """Entries of the vocabulary."""
    max_seq_len: int = 512
    """Tokens of a sequence."""
    device_batch_size: int = 8
    """Sequences of a step."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Number format of the computation."""
    num_iterations: int = 10
    """Steps that are timed."""
    baseline: bool = True
    """Time a straightforward float32 eager loop too, in turn with ours."""
    json: bool = False
    """Print one JSON object."""

    def check(self) -> None:
        """Raises UserError for a value that is wrong."""
        sizes.check_depth(self.depth)
        for name in ("vocab_size", "max_seq_len", "device_batch_size", "num_iterations"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name}={getattr(self, name)}: must be 1 or more")
