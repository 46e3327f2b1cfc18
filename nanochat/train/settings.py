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

    GROUPS: ClassVar[dict[str, str]] = {
        "Batch and memory": "total_batch_size device_batch_size micro_batch_size recompute reshard_after_forward",
        "Speed": "precision recipe compile",
        **OptimizerSettings.GROUPS,
        "Optimizers": OptimizerSettings.GROUPS["Optimizers"] + " grad_clip",
        "Evaluation": "eval_every eval_tokens sample_every",
        "Checkpoints": "save_every keep_every checkpoint_mirror",
        "Guards": "max_bad_steps hang_timeout",
        "Name and tracking": "model_tag run usd_per_gpu_hour seed",
    }

    run: str = ""
    """Name of the run in wandb; `dummy` for none. Default: the environment's WANDB_RUN, else dummy."""
    model_tag: str = ""
    """Name of the run's directory. Default: d and the depth, as in d20."""
    device_batch_size: int = 32
    """Sequences a GPU handles per pass, at most; how many it holds at once is the micro-batch, chosen to fit and to be fast."""
    total_batch_size: int = 524_288
    """Tokens of a step, over all ranks and micro-batches."""
    micro_batch_size: int = OFF
    """Sequences that a GPU holds at once; -1 for the planner's choice, at most --device_batch_size."""
    recompute: str = "auto"
    """What the backward pass computes again to save memory: none, mlp, block, or one for some layers only, as in mlp:20; auto
    for the planner's choice."""
    reshard_after_forward: Literal["auto", "always", "never"] = "auto"
    """Whether whole weights are given up after a layer's forward pass, to be gathered again for its backward pass; auto for the planner's
    choice."""
    precision: Literal["auto", "fp32", "bf16", "fp8"] = "auto"
    """Number format of the computation; auto for bf16 where the hardware has it, else fp32."""
    recipe: str = "auto"
    """Kernels in place of those that scripts.tune found fastest here, as in attention=flash,muon=plain; auto for what it found, or for safe
    defaults where it has not been run."""
    compile: bool = True
    """Compile the blocks and the loss: it takes its time at the start, and steps are faster from then on."""
    grad_clip: float = 1.0
    """Norm that a larger gradient is scaled down to; 0 for no limit."""
    eval_every: int = EVAL_EVERY
    """Steps between evaluations on held-out text, with one at the end; -1 for never."""
    eval_tokens: int = EVAL_TOKENS
    """Held-out tokens of an evaluation, or as many as there are."""
    sample_every: int = 2000
    """Steps between samples of what the model writes, with some at the end; -1 for never."""
    save_every: int = 500
    """Steps between checkpoints; -1 for only the last."""
    keep_every: int = OFF
    """Steps between checkpoints that are kept for good, besides the last two: a multiple of --save_every; -1 for none."""
    checkpoint_mirror: str = ""
    """Address off this node where finished checkpoints and models are copied to, and from where a new node goes on: s3://…, gs://…,
    hf://buckets/…, a path. Default: the environment's CHECKPOINT_MIRROR, else none."""
    max_bad_steps: int = 10
    """Steps in a row whose loss or gradient is not finite, or explodes, after which the run goes back to its last checkpoint; each is
    skipped."""
    hang_timeout: float = 600
    """Seconds without a sign of life after which a rank ends, and with it the job; ten times as long for what is no step; -1 for never. A
    single CPU process is not watched."""
    usd_per_gpu_hour: float = OFF
    """Price of one GPU for an hour, in US dollars; -1 for the planner's table."""
    seed: int = 42
    """Seed of new weights and of the data's order."""

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
    """Train a base model on text, from nothing; the same command again goes on where it stopped.

    Its length follows from the first of these that is given: --num_iterations; --target_hours and --target_usd, of two the shorter;
    --target_flops; --target_param_data_ratio.
    """

    GROUPS: ClassVar[dict[str, str]] = {
        "Model and text": "depth max_seq_len data tokenizer embedding_init attention_init",
        "Length of the run": "num_iterations target_hours target_usd target_flops target_param_data_ratio",
        **TrainSettings.GROUPS,
        "Evaluation": TrainSettings.GROUPS["Evaluation"] + " core_metric_every core_metric_max_per_task bundle",
    }

    # What beats the plain settings at depths 2 and 3, by more than seeds differ: ablations/README.md.
    muon_beta2: float = 0.95
    warmdown_ratio: float = 0.6
    depth: int = 20
    """Layers; width and heads follow from it, and with the width the learning rates of embedding and head."""
    max_seq_len: int = 2048
    """Tokens of a sequence, which are the model's context."""
    data: str | None = None
    """Text to train on: python, climbmix, fineweb-edu or path:DIR. Default: climbmix, or the only one that is there."""
    tokenizer: str | None = None
    """Tokenizer, by name, as in python-4096. Default: climbmix-65536, or the only one that is there."""
    embedding_init: Literal["text", "random"] = "text"
    """What a new model's embedding begins with: what the text says of each token's neighbours, or random numbers. These want
    --embedding_lr=0.8."""
    attention_init: Literal["previous", "random"] = "previous"
    """What heads of a new model's first layer begin with: a look at the tokens before, or random numbers."""
    num_iterations: int = OFF
    """Steps; -1 to follow from the flags below."""
    target_flops: float = OFF
    """FLOPs to spend; -1 for no such aim."""
    target_param_data_ratio: float = 8
    """Tokens per parameter; Chinchilla's is 20, this architecture's optimum near 8."""
    target_hours: float = OFF
    """Hours to train, at the planner's speed for these GPUs; -1 for no such limit."""
    target_usd: float = OFF
    """US dollars to spend, at the planner's speed and --usd_per_gpu_hour; -1 for no such limit."""
    core_metric_every: int = OFF
    """Steps between evaluations of CORE, with one at the end; -1 for never."""
    core_metric_max_per_task: int = 500
    """Questions of each of CORE's tasks, at most; -1 for all."""
    bundle: str = ""
    """CORE's tasks: a directory, a zip, or `small` for the little ones of this project. Default: CORE's own, fetched once."""

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
