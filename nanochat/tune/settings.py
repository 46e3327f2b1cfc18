"""The flags of the tuner."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from nanochat.common.errors import UserError
from nanochat.plan import batch, sizes
from nanochat.plan.settings import BATCHES, DEFAULT_BATCH, MAX_VOCAB_SIZE, OFF

MINUTES, QUICK_MINUTES, RECORDING_MINUTES = 10.0, 2.0, 25.0
RECORDED_DEPTHS = (38, 52)  # whose figures --record is for
RECORDED_RANKS = 8


@dataclass(frozen=True)
class TuneSettings:
    """Prove every fast way to make a training step on this machine, measure the ones that are right, and keep the fastest.

    The result, under profiles/ of the base directory, is what training, scripts.plan and the report go by from then on.
    """

    GROUPS: ClassVar[dict[str, str]] = {
        "Model": "depth vocab_size max_seq_len precision",
        "Batch and ranks": "total_batch_size device_batch_size world_size",
        "How long": "quick minutes once",
        "Output": "record sent_in json",
    }

    depth: int = OFF
    """Layers; width and heads follow from it. Default: the run scripts' 38 on a GPU, the rehearsal's 4 on a CPU; with --record 38 and
    52."""
    vocab_size: int = 65_536
    """Entries of the vocabulary."""
    max_seq_len: int = 2048
    """Tokens of a sequence."""
    device_batch_size: int = OFF
    """Sequences a GPU handles per pass, at most; -1 for the run scripts' at depths 38 and 52, else 32 (8 on a CPU)."""
    total_batch_size: int = OFF
    """Tokens of a step, over all ranks; -1 for the run scripts' at depths 38 and 52, else what --device_batch_size makes in
    one pass."""
    world_size: int = OFF
    """Ranks that share the weights; one of them is run. -1 for the GPUs of this machine, with --record 8."""
    precision: Literal["auto", "bf16", "fp8", "fp32"] = "auto"
    """Number format; auto for bf16 and then, where a GPU has it, fp8; on a CPU for the faster of bf16 and fp32."""
    quick: bool = False
    """Two minutes instead of ten: the likeliest way alone, and the proofs that it needs."""
    minutes: float = OFF
    """Minutes after which nothing more is tried; -1 for 10, with --quick 2, with --record 25, for it measures four steps in full."""
    record: bool = False
    """Write what was measured into the repository's table too, for the GPUs that it knows."""
    sent_in: str = ""
    """With --record: the file of a profile from another machine, whose figures are recorded instead. Default: this machine's."""
    once: bool = False
    """Do nothing where the profile of this machine, for this torch and driver, has the size already."""
    json: bool = False
    """Print the profile as one JSON object."""

    @property
    def seconds(self) -> float:
        """How long it may take."""
        usual = QUICK_MINUTES if self.quick else RECORDING_MINUTES if self.record else MINUTES
        return 60 * (self.minutes if self.minutes != OFF else usual)

    def sequences(self, depth: int, on_gpu: bool) -> int:
        """Sequences a GPU handles per pass."""
        return self.device_batch_size if self.device_batch_size != OFF else BATCHES.get(depth, DEFAULT_BATCH)[0] if on_gpu else 8

    def tokens(self, depth: int, world_size: int, on_gpu: bool) -> int:
        """Tokens of a step over all ranks."""
        if self.total_batch_size != OFF:
            return self.total_batch_size
        usual = BATCHES[depth][1] if depth in BATCHES and on_gpu else 0
        one_pass = self.sequences(depth, on_gpu) * self.max_seq_len * world_size
        return usual if usual % (self.max_seq_len * world_size) == 0 and usual else one_pass

    def check(self) -> None:
        """Raises UserError for a value that is wrong."""
        if self.sent_in and not self.record:
            raise UserError(f"--sent_in={self.sent_in}: to write its figures into the table give --record too")
        if self.depth != OFF:
            sizes.check_depth(self.depth)
        for name in ("vocab_size", "max_seq_len"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name}={getattr(self, name)}: must be 1 or more")
        if self.vocab_size > MAX_VOCAB_SIZE:
            raise UserError(f"--vocab_size={self.vocab_size}: at most {MAX_VOCAB_SIZE}, for tokens are kept in 16 bits")
        for name in ("device_batch_size", "total_batch_size", "world_size"):
            if getattr(self, name) < 1 and getattr(self, name) != OFF:
                raise UserError(f"--{name}={getattr(self, name)}: must be 1 or more, or -1")
        if self.minutes != OFF and not 0 < self.minutes < float("inf"):
            raise UserError(f"--minutes={self.minutes}: must be more than 0, or left out")
        if self.total_batch_size != OFF and self.world_size != OFF:
            sequences = self.device_batch_size if self.device_batch_size != OFF else 1
            batch.micro_batches(self.total_batch_size, self.max_seq_len, self.world_size, sequences)
