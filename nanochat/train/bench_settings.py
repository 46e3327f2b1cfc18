"""The flags of the training benchmark."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from nanochat.common.errors import UserError
from nanochat.plan import batch, sizes
from nanochat.plan.recipe import check_recipe
from nanochat.plan.recompute import Recompute
from nanochat.plan.settings import BATCHES, DEFAULT_BATCH, OFF


@dataclass(frozen=True)
class BenchTrainSettings:
    """Measure the training step on random data and weights, as one rank of many or on the ranks that torchrun starts."""

    GROUPS: ClassVar[dict[str, str]] = {
        "Model": "depth vocab_size max_seq_len",
        "Ranks": "simulate world_size",
        "Batch and memory": "total_batch_size device_batch_size micro_batch_size recompute reshard_after_forward",
        "Speed": "precision recipe compile",
        "Measuring": "num_iterations warmup_s baseline profile",
        "Output": "record json",
    }

    depth: int = 4
    """Layers; width and heads follow from it."""
    vocab_size: int = 65_536
    """Entries of the vocabulary."""
    max_seq_len: int = 2048
    """Tokens of a sequence."""
    device_batch_size: int = OFF
    """Sequences a GPU handles per pass, at most; -1 for the run scripts' at depths 38 and 52, else 32."""
    total_batch_size: int = OFF
    """Tokens of a step, over all ranks; -1 for what --device_batch_size makes in one pass."""
    world_size: int = 1
    """Ranks that share the weights, with --simulate; without it torchrun says how many."""
    simulate: bool = False
    """Run one rank of --world_size, alone: its true memory and computing; the traffic is added from the planner's table, shown apart."""
    micro_batch_size: int = OFF
    """Sequences that a GPU holds at once; -1 for the planner's choice."""
    recompute: str = "auto"
    """What the backward pass computes again to save memory: none, mlp, block, or one for some layers only, as in mlp:20; auto
    for the planner's choice."""
    reshard_after_forward: Literal["auto", "always", "never"] = "auto"
    """Whether whole weights are given up after a layer's forward pass; auto for the planner's choice."""
    precision: Literal["auto", "fp32", "bf16", "fp8"] = "auto"
    """Number format of the computation; auto for bf16 where the hardware has it, else fp32."""
    recipe: str = "auto"
    """Kernels in place of those that scripts.tune found fastest here, as in attention=flash,muon=plain; auto for what it found, or for safe
    defaults where it has not been run."""
    compile: bool = True
    """Compile the blocks and the loss, as training does."""
    num_iterations: int = 10
    """Steps that are timed."""
    warmup_s: float = OFF
    """Seconds of steps before those, at least; -1 for 8 on a GPU, which then has come to its power limit, and one step on a CPU."""
    baseline: bool = False
    """Time a straightforward float32 eager loop too, in turn with ours; for small sizes."""
    record: bool = False
    """Write the result into the planner's table of measurements; wants --simulate."""
    profile: bool = False
    """Show the kernels that take the most time."""
    json: bool = False
    """Print one JSON object."""

    @property
    def sequences(self) -> int:
        """Sequences a GPU handles per pass."""
        return self.device_batch_size if self.device_batch_size != OFF else BATCHES.get(self.depth, DEFAULT_BATCH)[0]

    def tokens(self, world_size: int) -> int:
        """Tokens of a step over all ranks."""
        return self.total_batch_size if self.total_batch_size != OFF else self.sequences * self.max_seq_len * world_size

    def check(self) -> None:
        """Raises UserError for a value that is wrong."""
        sizes.check_depth(self.depth)
        for name in ("vocab_size", "max_seq_len", "world_size", "num_iterations"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name}={getattr(self, name)}: must be 1 or more")
        for name in ("device_batch_size", "total_batch_size", "micro_batch_size"):
            if getattr(self, name) < 1 and getattr(self, name) != OFF:
                raise UserError(f"--{name}={getattr(self, name)}: must be 1 or more, or -1")
        if self.recompute != "auto":
            Recompute.parse(self.recompute, self.depth)
        check_recipe(self.recipe)
        if self.world_size > 1 and not self.simulate:
            raise UserError(f"--world_size={self.world_size}: needs --simulate; to run on real ranks start this with torchrun instead")
        if self.simulate:
            batch.micro_batches(self.tokens(self.world_size), self.max_seq_len, self.world_size, self.sequences)
        if self.record and not (self.simulate and self.compile):
            raise UserError("--record: the table holds compiled steps of single ranks; give --simulate and --world_size=8, and compile")
        if self.baseline and (self.simulate or self.record):
            raise UserError("--baseline runs the whole step on one device: leave out --simulate and --record")
