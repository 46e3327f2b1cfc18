"""The planner's answer: one model on one node or several, and what its run takes."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

from nanochat.common.errors import UserError
from nanochat.plan import batch, budget
from nanochat.plan.budget import Run
from nanochat.plan.choose import RESHARD, StepPlan, best, what_is_short
from nanochat.plan.disk import Disk, disk_of, kept_for_good
from nanochat.plan.hardware import GPUS, Gpu, parse_gpus, split_gpus
from nanochat.plan.loss import Forecast, expected
from nanochat.plan.memory import GIB
from nanochat.plan.profile import with_own_links
from nanochat.plan.recompute import Recompute
from nanochat.plan.settings import BATCHES, DEFAULT_BATCH, DEFAULT_DEPTH, OFF, PlanSettings
from nanochat.plan.sizes import Shape
from nanochat.plan.step import LINK_SHARE, Job
from nanochat.plan.this_machine import this_machine

EXAMPLE_NODE = "8xH100-80GB"
SEQUENCES_A_RANK = 8  # where the total is ours to choose a rank takes a multiple of this, so that many micro-batches divide


@dataclass(frozen=True)
class Node:
    """The GPUs of one node."""

    count: int
    """GPUs that are used."""
    gpu: Gpu
    """Their kind."""
    is_this_machine: bool
    """Whether it is the node at hand."""


def node_of(settings: PlanSettings) -> Node:
    """The node that --gpus names, or this machine's, or where it has no GPU an example's.

    Raises UserError for a kind that is not known, and for more GPUs than there are.
    """
    count, gpu, here = _named_or_here(settings.gpus)
    if settings.nproc_per_node != OFF:
        if settings.nproc_per_node > count and (here or settings.gpus):
            raise UserError(f"--nproc_per_node={settings.nproc_per_node}: the node has {count} GPUs; ask for at most that many")
        count = settings.nproc_per_node
    return Node(count, gpu, here)


def _named_or_here(text: str) -> tuple[int, Gpu, bool]:
    if not text:
        found = this_machine()
        return (*found, True) if found else (*parse_gpus(EXAMPLE_NODE), False)
    try:
        return (*parse_gpus(text), False)
    except UserError:
        # A kind that is not in the table can be planned for where it is.
        found = this_machine()
        count, kind = split_gpus(text)
        if found and found[1].name.lower() == kind.lower():
            return count, found[1], False
        raise


@dataclass(frozen=True)
class Answer:
    """A run, and what it needs on disk."""

    run: Run
    """The steps, and how each is run."""
    disk: Disk
    """Text, token shards, checkpoints."""
    data: str
    """Text that it trains on."""
    nodes: int
    """Nodes."""

    @property
    def loss(self) -> Forecast:
        """The loss that it can expect."""
        return expected(self.data, self.run.plan.job.shape.parameters, self.run.tokens)

    def to_json(self) -> dict[str, Any]:
        """What machines read. Memory in GiB, money in US dollars; what is not known is null."""
        run, plan, disk = self.run, self.run.plan, self.disk
        job, shape = plan.job, plan.job.shape
        return {
            "depth": shape.depth,
            "parameters": shape.parameters,
            "flops_per_token": shape.flops_per_token,
            "gpu": job.gpu.name,
            "gpu_memory_gib": job.gpu.memory_gib,
            "world_size": job.world_size,
            "nodes": self.nodes,
            "precision": job.precision,
            "total_batch_size": job.total_batch_size,
            "device_batch_size": job.device_batch_size,
            "fits": plan.fits,
            "peak_gib": round(plan.peak_gib, 3),
            "allocated_gib": round(plan.allocated_gib, 3),
            "reserved_gib": round(plan.reserved_gib, 3),
            "memory_gib": {field.name: round(getattr(plan.memory, field.name) / GIB, 3) for field in fields(plan.memory)},
            "micro_batch_size": plan.micro_batch_size,
            "grad_accum_steps": plan.grad_accum_steps,
            "recompute": plan.recompute_text,
            "reshard": plan.reshard,
            "tok_per_s": plan.tok_per_s,
            "mfu": plan.mfu,
            "step_s": plan.time.total,
            "time_s": {field.name: getattr(plan.time, field.name) for field in fields(plan.time)},
            "tokens": run.tokens,
            "tokens_per_parameter": run.tokens_per_parameter,
            "steps": run.steps,
            "hours": run.hours,
            "usd": run.usd,
            "usd_per_gpu_hour": run.usd_per_gpu_hour or None,
            "expected_val_bpb": round(self.loss.bpb, 4),
            "expected_val_bpb_range": [round(self.loss.low, 4), round(self.loss.high, 4)],
            "expected_val_bpb_basis": self.loss.basis,
            "data": self.data,
            "text_shards": disk.text_shards,
            "epochs": disk.epochs,
            "data_gb": disk.data_gb,
            "checkpoint_gb": disk.checkpoint_gb,
            "later_stages_gb": disk.later_stages_gb,
            "estimated": plan.estimated,
            "basis": plan.basis,
        }


class Planner:
    """Answers for one node; what the settings leave open it chooses."""

    def __init__(self, settings: PlanSettings, node: Node):
        self.settings, self.node = settings, node
        price = settings.usd_per_gpu_hour
        self.usd_per_gpu_hour = price if price != OFF else node.gpu.usd_per_hour

    def answer(self) -> Answer:
        """For the depth that was asked for, or the one that the budget buys. Raises UserError where there is none."""
        s = self.settings
        if s.depth != OFF or not s.has_budget:
            return self.at_depth(s.depth if s.depth != OFF else DEFAULT_DEPTH)
        depth = budget.deepest(self._run, s.target_param_data_ratio)
        if not depth:
            raise UserError(
                f"{self._budget_text()} on {self.node.count * s.nodes} × {self.node.gpu.name}: too little for "
                f"{s.target_param_data_ratio:g} tokens per parameter at any depth that fits; give more, or lower --target_param_data_ratio"
            )
        return self.at_depth(depth)

    def beside(self, depth: int) -> Iterator[Answer]:
        """The same budget at this depth and the even ones next to it."""
        return map(self.at_depth, budget.neighbours(depth))

    def at_depth(self, depth: int) -> Answer:
        """For one depth. Raises UserError where the budget does not buy a single step."""
        run = self._run(depth)
        if not run.steps:
            raise UserError(
                f"{self._budget_text()} is less than one step of depth {depth} takes on {self.node.count * self.settings.nodes} × "
                f"{self.node.gpu.name} ({run.plan.time.total:.1f} s); give more, or a smaller --depth"
            )
        s = self.settings
        disk = disk_of(run.plan.job.shape, run.tokens, s.data, kept_for_good(run.steps, s.keep_every))
        return Answer(run, disk, s.data, s.nodes)

    def refusal(self, plan: StepPlan) -> str:
        """A sentence on a plan that does not fit, and the nearest that does."""
        return what_is_short(plan, *self._overrides(plan.job.shape.depth))

    def _overrides(self, depth: int) -> tuple[int | None, Recompute | None, bool | None]:
        s = self.settings
        recompute = None if s.recompute == "auto" else Recompute.parse(s.recompute, depth)
        return None if s.micro_batch_size == OFF else s.micro_batch_size, recompute, RESHARD[s.reshard_after_forward]

    def _run(self, depth: int) -> Run:
        s = self.settings
        job = self._job(depth)
        plan = best(job, *self._overrides(depth))
        if s.has_budget:
            steps = budget.steps_within(plan, s.hours, s.usd, self.usd_per_gpu_hour)
        else:
            shape = job.shape
            ratio = s.target_param_data_ratio
            steps = batch.num_iterations(shape.depth, shape.vocab_size, shape.seq_len, job.total_batch_size, s.num_iterations, OFF, ratio)
        return Run(plan, steps, self.usd_per_gpu_hour)

    def _job(self, depth: int) -> Job:
        s = self.settings
        if s.precision == "fp8" and not self.node.gpu.peak_fp8_flops:
            raise UserError(f"--precision=fp8: {self.node.gpu.name} has no fp8; use bf16")
        world_size = self.node.count * s.nodes
        device_batch_size, total_batch_size = BATCHES.get(depth, DEFAULT_BATCH)
        return Job(
            shape=Shape(depth, s.vocab_size, s.max_seq_len),
            gpu=with_own_links(self.node.gpu, LINK_SHARE),
            world_size=world_size,
            shard_ranks=self.node.count,
            total_batch_size=s.total_batch_size if s.total_batch_size != OFF else _divisible(total_batch_size, s.max_seq_len * world_size),
            device_batch_size=s.device_batch_size if s.device_batch_size != OFF else device_batch_size,
            compute_bytes=4 if s.precision == "fp32" else 2,
            fp8=s.precision == "fp8",
        )

    def _budget_text(self) -> str:
        s = self.settings
        return " and ".join([f"{s.hours:g} hours"] * (s.hours != OFF) + [f"${s.usd:g}"] * (s.usd != OFF))


def _divisible(tokens: int, per_sequence: int) -> int:
    """The total batch nearest to `tokens` that splits into sequences over all ranks."""
    sequences = tokens / per_sequence
    if sequences == int(sequences):
        return tokens
    even = SEQUENCES_A_RANK if sequences >= SEQUENCES_A_RANK else 1
    return max(1, round(sequences / even) * even) * per_sequence


def compare(settings: PlanSettings, node: Node) -> list[Answer | tuple[Gpu, str]]:
    """The answer on as many GPUs of every kind, or the kind and why there is none; a price that was given is that of --gpus."""
    kinds = [node.gpu, *GPUS] if node.gpu.name not in [gpu.name for gpu in GPUS] else list(GPUS)
    answers: list[Answer | tuple[Gpu, str]] = []
    for gpu in kinds:
        own = settings if gpu.name == node.gpu.name else replace(settings, usd_per_gpu_hour=OFF)
        try:
            answers.append(Planner(own, Node(node.count, gpu, False)).answer())
        except UserError as error:
            answers.append((gpu, str(error)))
    return answers
