"""The flags of training: those that every stage has, and those of base training. Imports nothing heavy."""

import os
from dataclasses import dataclass
from typing import ClassVar, Literal

from nanochat.common.errors import UserError
from nanochat.optim.settings import OptimizerSettings
from nanochat.plan import batch, sizes
from nanochat.plan.budget import EVAL_EVERY, EVAL_TOKENS
from nanochat.plan.recipe import check_recipe
from nanochat.plan.recompute import Recompute

OFF = -1


def mirror_address(asked: str) -> str:
    """The address that was asked for, else the environment's CHECKPOINT_MIRROR; empty for none."""
    return asked or os.environ.get("CHECKPOINT_MIRROR", "")


@dataclass(frozen=True)
class TrainSettings(OptimizerSettings):
    """What every stage has."""

    run: str = ""
    """Name of the run in wandb; `dummy` for none. Default: the environment's WANDB_RUN, else dummy."""
    model_tag: str = ""
    """Name of the run's directory. Default: d and the depth."""
    device_batch_size: int = 32
    """Sequences a GPU handles per pass; what is allocated at once is the micro-batch, chosen to fit and to be fast."""
    total_batch_size: int = 524_288
    """Tokens of a step, over all ranks and micro-batches."""
    micro_batch_size: int = OFF
    """Sequences that a GPU holds at once; -1 for the planner's choice, at most device_batch_size."""
    recompute: str = "auto"
    """What the backward pass computes again: auto, none, elementwise, mlp, block, or one for some layers only, as in mlp:20."""
    reshard_after_forward: Literal["auto", "always", "never"] = "auto"
    """Whether whole weights are given up after a layer's forward pass; auto for the planner's choice."""
    precision: Literal["auto", "fp32", "bf16", "fp8"] = "auto"
    """Number format of the computation; auto is bf16 where the hardware has it, else fp32."""
    recipe: str = "auto"
    """Kernels: some of scripts.tune's choices, as in attention=flash,muon=plain, in place of those that it found fastest here; auto
    for just those, or where it has not been run defaults."""
    compile: bool = True
    """Compile the blocks and the loss."""
    grad_clip: float = 1.0
    """Largest norm of the gradient; 0 for no limit."""
    eval_every: int = EVAL_EVERY
    """Steps between evaluations on held-out text; -1 for never."""
    eval_tokens: int = EVAL_TOKENS
    """Held-out tokens of an evaluation; as many as there are when there are fewer."""
    sample_every: int = 2000
    """Steps between samples of text; -1 for never."""
    save_every: int = 500
    """Steps between checkpoints; -1 for only the last."""
    keep_every: int = OFF
    """Steps between checkpoints that are kept for good, besides the last two; -1 for none."""
    checkpoint_mirror: str = ""
    """Address off this node, as fsspec knows it (s3://…, gs://…, hf://buckets/…, a path), where each finished checkpoint is copied to,
    and from where a new node goes on. Default: the environment's CHECKPOINT_MIRROR, else none."""
    max_bad_steps: int = 10
    """Steps in a row with a loss or gradient that is not finite, or explodes, before the run goes back to its last checkpoint."""
    hang_timeout: float = 600
    """Seconds without a sign of life after which a rank ends, and with it the job; ten times as long for what is no step; -1 for never."""
    usd_per_gpu_hour: float = OFF
    """Price of one GPU for an hour; -1 takes the table's."""
    seed: int = 42
    """Seed of the weights and of the data's order."""

    INHERITED: ClassVar[tuple[str, ...]] = ()
    """What is -1 until the stage before has said it."""

    @property
    def wandb_run(self) -> str:
        """Name of the wandb run; empty for none."""
        name = self.run or os.environ.get("WANDB_RUN", "")
        return "" if name == "dummy" else name

    @property
    def mirror(self) -> str:
        """Address of the mirror; empty for none."""
        return mirror_address(self.checkpoint_mirror)

    def check(self) -> None:
        """Raises UserError for a value that no run can have."""
        for name in ("device_batch_size", "total_batch_size", "eval_tokens", "max_bad_steps"):
            if getattr(self, name) < 1 and not (name in self.INHERITED and getattr(self, name) == OFF):
                raise UserError(f"--{name}={getattr(self, name)}: must be 1 or more")
        check_recipe(self.recipe)
        if self.micro_batch_size < 1 and self.micro_batch_size != OFF:
            raise UserError(f"--micro_batch_size={self.micro_batch_size}: must be 1 or more, or -1 for the planner's choice")
        for name in ("eval_every", "sample_every", "save_every"):
            if getattr(self, name) < 1 and getattr(self, name) != OFF:
                raise UserError(f"--{name}={getattr(self, name)}: must be 1 or more, or -1 for never")
        if not self.hang_timeout > 0 and self.hang_timeout != OFF:
            raise UserError(f"--hang_timeout={self.hang_timeout}: must be more than 0, or -1 for never")
        if self.keep_every != OFF and (self.keep_every < 1 or self.save_every < 1 or self.keep_every % self.save_every):
            raise UserError(f"--keep_every={self.keep_every}: must be a multiple of --save_every={self.save_every}, or -1 for none")
        for name in ("embedding_lr", "unembedding_lr", "matrix_lr", "weight_decay", "projection_std", "grad_clip"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UserError(f"--{name}={getattr(self, name)}: must be 0 or more")
        for name in ("warmup_ratio", "warmdown_ratio", "adamw_warmdown_ratio", "final_lr_frac", "init_lr_frac"):
            if not 0 <= getattr(self, name) <= 1 and not (name == "adamw_warmdown_ratio" and getattr(self, name) == OFF):
                raise UserError(f"--{name}={getattr(self, name)}: a share of the whole, from 0 to 1")
        for name in ("warmdown_ratio", "adamw_warmdown_ratio"):
            if self.warmup_ratio + getattr(self, name) > 1:
                raise UserError(
                    f"--warmup_ratio={self.warmup_ratio} and --{name}={getattr(self, name)} are more than the whole run together"
                )
        if not 0 <= self.muon_beta2 < 1:
            raise UserError(f"--muon_beta2={self.muon_beta2}: from 0 to less than 1")
        if "/" in self.model_tag or self.model_tag.startswith(".") or len(self.model_tag.encode()) > 200:
            raise UserError(f"--model_tag={self.model_tag}: a name of at most 200 bytes without '/' that does not begin with '.'")


@dataclass(frozen=True)
class BaseTrainSettings(TrainSettings):
    """Train a base model on text, from nothing; the same command again goes on where it stopped."""

    depth: int = 20
    """Layers; width, heads and learning rates follow from it."""
    max_seq_len: int = 2048
    """Tokens of a sequence."""
    data: str | None = None
    """Text to train on: python, climbmix, fineweb-edu or path:DIR. Default: climbmix, or the only one that is there."""
    tokenizer: str | None = None
    """Tokenizer, by name. Default: climbmix-65536, or the only one that is there."""
    num_iterations: int = OFF
    """Steps; -1 to follow from target_flops or target_param_data_ratio."""
    target_flops: float = OFF
    """FLOPs to spend, which fixes the steps; -1 to follow from target_param_data_ratio."""
    target_param_data_ratio: float = 8
    """Tokens per parameter, which fixes the steps; Chinchilla's is 20, this architecture's optimum near 8."""
    target_hours: float = OFF
    """Hours to train, which fix the steps by the planner's speed; -1 to follow from the others."""
    target_usd: float = OFF
    """US dollars to spend, which fix the steps by the planner's speed and price; -1 to follow from the others."""
    core_metric_every: int = OFF
    """Steps between evaluations of the CORE metric; -1 for never."""
    core_metric_max_per_task: int = 500
    """Questions of each task of these evaluations at most; -1 for all."""
    bundle: str = ""
    """Bundle of CORE's tasks: a directory, a zip, or `small`. Default: CORE's own, fetched once."""

    @property
    def tag(self) -> str:
        """Name of the run's directory."""
        return self.model_tag or f"d{self.depth}"

    def check(self) -> None:
        """Raises UserError for a value that no run can have."""
        super().check()
        sizes.check_depth(self.depth)
        if self.muon_hold_norm and not self.projection_std:
            raise UserError("--muon_hold_norm keeps what is zero at zero: give the output projections a start, as in --projection_std=1")
        if self.max_seq_len < 1:
            raise UserError(f"--max_seq_len={self.max_seq_len}: must be 1 or more")
        if self.num_iterations < 1 and self.num_iterations != OFF:
            raise UserError(f"--num_iterations={self.num_iterations}: must be 1 or more, or -1 to follow from the other two")
        for name in ("target_flops", "target_param_data_ratio", "target_hours", "target_usd"):
            if not 0 < getattr(self, name) < float("inf") and getattr(self, name) != OFF:
                raise UserError(f"--{name}={getattr(self, name)}: must be more than 0, or -1 to follow from the others")
        for name in ("core_metric_every", "core_metric_max_per_task"):
            if getattr(self, name) < 1 and getattr(self, name) != OFF:
                raise UserError(f"--{name}={getattr(self, name)}: must be 1 or more, or -1")
        if self.recompute != "auto":
            Recompute.parse(self.recompute, self.depth)
        batch.micro_batches(self.total_batch_size, self.max_seq_len, int(os.environ.get("WORLD_SIZE", "1")), self.device_batch_size)
