"""The flags of the planner."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from nanochat.common.errors import UserError
from nanochat.plan import sizes
from nanochat.plan.disk import TRAIN_SHARDS

OFF = -1
DEFAULT_DEPTH = 38
DEFAULT_RATIO = 8.0
MAX_VOCAB_SIZE = 65_536
# Sequences a GPU handles per pass, and tokens of a step: the run scripts' sizes at their depths, base_train's elsewhere.
BATCHES = {38: (48, 786_432), 52: (24, 393_216)}
DEFAULT_BATCH = (32, 524_288)


@dataclass(frozen=True)
class PlanSettings:
    """Say what a base run will take before it starts: memory, time, money, disk."""

    GROUPS: ClassVar[dict[str, str]] = {
        "Model and text": "depth max_seq_len vocab_size data",
        "Machine": "gpus nproc_per_node nodes usd_per_gpu_hour",
        "Length of the run": "hours usd num_iterations target_param_data_ratio",
        "Batch and memory": "total_batch_size device_batch_size micro_batch_size recompute reshard_after_forward precision",
        "Checkpoints": "keep_every",
        "Output": "compare json field check write_docs",
    }

    depth: int = OFF
    """Layers; width and heads follow from it. Default: 38; with --hours or --usd, the deepest that the budget trains well."""
    gpus: str = ""
    """GPUs of a node, as in 8xH100-80GB. Default: this machine's, and where it has none 8xH100-80GB."""
    nproc_per_node: int = OFF
    """GPUs of a node that are used; -1 for all."""
    nodes: int = 1
    """Machines that train together, all alike."""
    max_seq_len: int = 2048
    """Tokens of a sequence."""
    vocab_size: int = 65_536
    """Entries of the vocabulary."""
    device_batch_size: int = OFF
    """Sequences a GPU handles per pass, at most; -1 for the run scripts' at depths 38 and 52, else 32."""
    total_batch_size: int = OFF
    """Tokens of a step, over all GPUs; -1 for the run scripts' at depths 38 and 52, else 524,288 or the nearest that divides."""
    precision: Literal["bf16", "fp8", "fp32"] = "bf16"
    """Number format of the computation."""
    micro_batch_size: int = OFF
    """Sequences that a GPU holds at once; -1 for the fastest that fits."""
    recompute: str = "auto"
    """What the backward pass computes again to save memory: none, mlp, block, or one for some layers only, as in mlp:20; auto
    for the fastest that fits."""
    reshard_after_forward: Literal["auto", "always", "never"] = "auto"
    """Whether whole weights are given up after a layer's forward pass; auto for the faster that fits."""
    num_iterations: int = OFF
    """Steps; -1 to follow from --hours and --usd, else from --target_param_data_ratio."""
    target_param_data_ratio: float = DEFAULT_RATIO
    """Tokens per parameter, which make the steps, or with --hours and --usd the depth."""
    hours: float = OFF
    """Hours to train: the tokens, and without --depth the depth, that they buy; -1 for no limit."""
    usd: float = OFF
    """US dollars to spend: the tokens, and without --depth the depth, that they buy; -1 for no limit."""
    usd_per_gpu_hour: float = OFF
    """Price of one GPU of --gpus for an hour, in US dollars; -1 for the default in the planner's table."""
    keep_every: int = OFF
    """Steps between checkpoints that are kept for good, as base_train takes it; -1 for none."""
    data: str = "climbmix"
    """Text to train on: climbmix or fineweb-edu, from the hub; or what is here already, python or path:DIR, which takes no room."""
    compare: bool = False
    """Lay all kinds of GPU side by side, as many of each as --gpus has."""
    json: bool = False
    """Print JSON instead of tables."""
    field: str = ""
    """Print one value of the JSON alone, by its name, as in text_shards. Default: all."""
    write_docs: bool = False
    """Make the tables of this checkout's documents anew, and nothing else."""
    check: bool = False
    """Exit with status 2 and one line when the GPUs or this machine's disk are too small; prints what --field or --json ask for."""

    @property
    def has_budget(self) -> bool:
        """Whether hours or dollars are given."""
        return self.hours != OFF or self.usd != OFF

    def validate(self) -> None:
        """Raises UserError for a value that no plan can have."""
        if self.depth != OFF:
            sizes.check_depth(self.depth)
        for name in ("nproc_per_node", "device_batch_size", "total_batch_size", "micro_batch_size", "num_iterations", "keep_every"):
            if getattr(self, name) < 1 and getattr(self, name) != OFF:
                raise UserError(f"--{name}={getattr(self, name)}: must be 1 or more, or left out")
        for name in ("nodes", "max_seq_len", "vocab_size"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name}={getattr(self, name)}: must be 1 or more")
        if self.vocab_size > MAX_VOCAB_SIZE:
            raise UserError(f"--vocab_size={self.vocab_size}: at most {MAX_VOCAB_SIZE}, for tokens are kept in 16 bits")
        for name in ("hours", "usd", "usd_per_gpu_hour"):
            if getattr(self, name) != OFF and not 0 < getattr(self, name) < float("inf"):
                raise UserError(f"--{name}={getattr(self, name)}: must be more than 0, or left out")
        if self.data not in (*TRAIN_SHARDS, "python") and not self.data.startswith(("path:", "path-")):
            raise UserError(f"--data={self.data}: no such text; there are {', '.join(TRAIN_SHARDS)}, python and path:DIR")
        if not 0 < self.target_param_data_ratio < float("inf"):
            raise UserError(f"--target_param_data_ratio={self.target_param_data_ratio}: must be more than 0")
        if self.num_iterations != OFF and self.has_budget:
            raise UserError(f"--num_iterations={self.num_iterations}: --hours and --usd fix the steps too; give one or the other")
        if self.compare and (self.field or self.check):
            raise UserError("--compare has many plans: --field and --check want one; leave it out")
