"""The flags of the preflight, and the run that it is for."""

import os
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

from nanochat.common.errors import UserError
from nanochat.plan.answer import EXAMPLE_NODE, Answer, Node, Planner
from nanochat.plan.disk import TRAIN_SHARDS
from nanochat.plan.hardware import parse_gpus
from nanochat.plan.settings import DEFAULT_DEPTH, DEFAULT_RATIO, OFF, PlanSettings
from nanochat.plan.this_machine import this_machine

LEAST_S = 5
IMPORT_FACTOR = 3  # eight processes that read torch from a network disk


@dataclass(frozen=True)
class PreflightSettings:
    """Look this machine over before a run, in less than a minute: GPUs, links, disks, memory, network, versions.

    Ends with status 2 where something is red: the run would fail, or waste what it costs. Yellow warns.
    """

    GROUPS: ClassVar[dict[str, str]] = {
        "Model and text": "depth max_seq_len vocab_size data",
        "Run": "num_iterations target_param_data_ratio total_batch_size device_batch_size precision save_every keep_every",
        "Machine": "nproc_per_node nodes",
        "Output": "seconds json",
    }

    depth: int = DEFAULT_DEPTH
    """Layers of the model that is to be trained; width and heads follow from it."""
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
    num_iterations: int = OFF
    """Steps of base training; -1 to follow from target_param_data_ratio."""
    target_param_data_ratio: float = DEFAULT_RATIO
    """Tokens per parameter, which fixes the steps of base training."""
    save_every: int = 500
    """Steps between checkpoints; -1 for only the last."""
    keep_every: int = OFF
    """Steps between checkpoints that are kept for good; -1 for none."""
    nproc_per_node: int = OFF
    """Processes on this node, one a GPU; -1 for the GPUs found, or one on a CPU. A launcher knows better."""
    nodes: int = 1
    """Machines that train together; a launcher knows better."""
    data: str = "climbmix"
    """Text to train on: python, climbmix, fineweb-edu or path:DIR."""
    seconds: float = 40
    """Seconds after which what has not answered is left, 5 or more; torch, from a cold disk, may take three times as long before that. On
    several nodes, and to end, a few more pass."""
    json: bool = False
    """Print one JSON object: verdict, and findings of name, status, value, advice and rank."""

    def check(self) -> None:
        """Raises UserError for a value that no run can have."""
        for name in ("nproc_per_node", "save_every"):
            if getattr(self, name) < 1 and getattr(self, name) != OFF:
                raise UserError(f"--{name}={getattr(self, name)}: must be 1 or more, or -1")
        if not LEAST_S <= self.seconds < float("inf"):
            raise UserError(f"--seconds={self.seconds}: must be {LEAST_S} or more")
        self._plan_settings().validate()

    @property
    def import_s(self) -> float:
        """Seconds that importing torch may take; those of what is measured count from its end."""
        return IMPORT_FACTOR * self.seconds

    @property
    def wants_hub(self) -> bool:
        """Whether the text comes from the hub."""
        return self.data in TRAIN_SHARDS

    @property
    def wandb_run(self) -> str:
        """Name of the wandb run, from WANDB_RUN; empty for none."""
        name = os.environ.get("WANDB_RUN", "")
        return "" if name == "dummy" or os.environ.get("WANDB_MODE") in ("offline", "disabled") else name

    @cached_property
    def node(self) -> Node:
        """This node as it is to be used, whether it has as many GPUs or not; without any as if it were the planner's example."""
        found = this_machine()
        count, gpu = found or (1, parse_gpus(EXAMPLE_NODE)[1])
        if self.nproc_per_node != OFF:
            count = self.nproc_per_node
        return Node(int(os.environ.get("LOCAL_WORLD_SIZE", count)), gpu, found is not None)

    def answer(self) -> Answer:
        """The plan of the run on this node. Raises UserError where there is none."""
        return Planner(self._plan_settings(), self.node).answer()

    def _plan_settings(self) -> PlanSettings:
        return PlanSettings(
            depth=self.depth,
            max_seq_len=self.max_seq_len,
            vocab_size=self.vocab_size,
            device_batch_size=self.device_batch_size,
            total_batch_size=self.total_batch_size,
            precision=self.precision,
            num_iterations=self.num_iterations,
            target_param_data_ratio=self.target_param_data_ratio,
            keep_every=self.keep_every,
            nproc_per_node=self.nproc_per_node,
            nodes=int(os.environ.get("GROUP_WORLD_SIZE", self.nodes)),
            data=self.data,
        )
