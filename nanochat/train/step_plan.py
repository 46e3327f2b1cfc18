"""How a run's step is divided: the micro-batch and what is recomputed, chosen by the planner and kept with the run."""

import contextlib
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from nanochat.common.console import say
from nanochat.common.errors import UserError
from nanochat.common.files import read_json, write_json
from nanochat.data.loader import Split
from nanochat.parallel.kernels import Kernels
from nanochat.parallel.precision import Precision
from nanochat.parallel.ranks import Ranks
from nanochat.plan import batch
from nanochat.plan.budget import evaluation_share, steps_within
from nanochat.plan.choose import RESHARD, StepPlan, choose
from nanochat.plan.hardware import Gpu, cpu, gpu_from_properties, gpu_named
from nanochat.plan.memory import CONTEXT_BYTES, GIB
from nanochat.plan.profile import machine_of, with_own_links
from nanochat.plan.recipe import Recipe
from nanochat.plan.recompute import LEVELS, Recompute
from nanochat.plan.sizes import Shape
from nanochat.plan.step import LINK_SHARE, Job
from nanochat.train.plan_check import PlanCheck
from nanochat.train.settings import BaseTrainSettings, TrainSettings

OTHERS_FROM_BYTES = 1 * GIB  # less is not told from a context that is larger than most


def available_memory_bytes() -> int:
    """Memory of this machine that processes can still have."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def this_gpu(ranks: Ranks) -> Gpu:
    """The device of a rank as the planner knows it; a GPU that is not in its table by what torch says of it."""
    if ranks.device.type == "cpu":
        return cpu(available_memory_bytes() / ranks.node_ranks / GIB)
    gpu = gpu_of(ranks.device)
    total_gib, memory_gib = torch.cuda.mem_get_info(ranks.device)[1] / GIB, ranks.least(gpu.memory_gib)
    if memory_gib < total_gib:
        say(f"{total_gib - memory_gib:.1f} GiB of a GPU's {total_gib:.1f} are taken by other processes: planned without them")
    return replace(gpu, memory_gib=memory_gib)


def gpu_of(device: torch.device) -> Gpu:
    """A device as the planner knows it, with the memory that other processes leave; a CPU has all of the machine's."""
    if device.type == "cpu":
        return cpu(available_memory_bytes() / GIB)
    properties = torch.cuda.get_device_properties(device)
    free, total = torch.cuda.mem_get_info(device)
    others = total - free - CONTEXT_BYTES  # this process has a context of its own already
    memory_gib = (total - others if others > OTHERS_FROM_BYTES else total) / GIB
    known = gpu_named(properties.name)
    if known:
        return replace(known, memory_gib=memory_gib)
    clock_hz = getattr(properties, "clock_rate", 0) * 1000
    return gpu_from_properties(
        properties.name, memory_gib * GIB, properties.multi_processor_count, clock_hz, (properties.major, properties.minor)
    )


def same_gpus(names: list[str]) -> None:
    """Raises UserError where ranks have GPUs of several kinds: all would wait for the slowest and fit the smallest."""
    if len(set(names)) > 1:
        found = ", ".join(f"{names.count(name)} × {name}" for name in sorted(set(names)))
        raise UserError(
            f"GPUs of several kinds: {found}; choose those of one kind with CUDA_VISIBLE_DEVICES and set NPROC_PER_NODE to match"
        )


ASKED = (
    "device_batch_size",
    "total_batch_size",
    "micro_batch_size",
    "recompute",
    "reshard_after_forward",
    "precision",
    "recipe",
    "compile",
)
KERNELS_DEPEND_ON = ("precision", "recipe", "compile", "gpu", "machine")  # not on how many ranks share the work, nor on batches
ANSWERED = {"micro_batch_size", "recompute", "reshard", "computes_in", "kernels"}


@dataclass
class KeptPlan:
    """The plan of a run's step and its kernels, in `step_plan.json`: a resumed run computes the same."""

    path: Path
    settings: TrainSettings
    world_size: int
    gpu: Gpu

    @property
    def _question(self) -> dict[str, Any]:
        """What the choice depends on; where it is as it was, the answer is too."""
        asked = {name: getattr(self.settings, name) for name in ASKED}
        return {**asked, "world_size": self.world_size, "gpu": self.gpu.name, "machine": machine_of(self.gpu)}

    def kernels(self) -> tuple[Precision, Recipe] | None:
        """What the run has computed with so far; None when it has not begun, or not so."""
        kept = self._read()
        recipe = Recipe.of(kept["kernels"]) if kept and self._asks_alike(kept, KERNELS_DEPEND_ON) else None
        return (kept["computes_in"], recipe) if kept and recipe else None

    def choose(self, job: Job) -> StepPlan:
        """The plan: what was kept, else what the planner chooses now. Raises UserError when nothing fits."""
        s, depth = self.settings, job.shape.depth
        micro = s.micro_batch_size if s.micro_batch_size > 0 else None
        recompute = None if s.recompute == "auto" else Recompute.parse(s.recompute, depth)
        reshard = RESHARD[s.reshard_after_forward]
        kept = self._kept()
        if kept:
            return _as_it_was(job, kept["micro_batch_size"], Recompute.parse(kept["recompute"], depth), kept["reshard"])
        plan = choose(job, micro, recompute, reshard)
        self.keep(plan)
        return plan

    def _read(self) -> dict[str, Any] | None:
        try:
            kept = dict(read_json(self.path))
        except (OSError, ValueError, TypeError):
            return None
        if not (kept.keys() >= ANSWERED and isinstance(kept.get("question"), dict)):
            return None
        return kept if str(kept["recompute"]).partition(":")[0] in LEVELS else None  # others are of an earlier version

    def _kept(self) -> dict[str, Any] | None:
        kept = self._read()
        return kept if kept and self._asks_alike(kept, self._question.keys()) else None

    def _asks_alike(self, kept: dict[str, Any], names: Iterable[str]) -> bool:
        return all(kept["question"].get(name) == self._question[name] for name in names)

    def keep(self, plan: StepPlan) -> None:
        """From now on this is the run's plan."""
        answer = {
            "question": self._question,
            "micro_batch_size": plan.micro_batch_size,
            "grad_accum_steps": plan.grad_accum_steps,
            "recompute": plan.recompute_text,
            "reshard": plan.reshard,
            "computes_in": plan.job.precision,
            "kernels": asdict(plan.job.recipe),
            "predicted_peak_gib": plan.peak_gib,
            "predicted_step_s": plan.time.total,
            "basis": plan.basis,
            "on_gpu": plan.job.on_gpu,
        }
        write_json(self.path, answer)


def _as_it_was(job: Job, micro_batch_size: int, recompute: Recompute, reshard: bool) -> StepPlan:
    """The plan of these choices, whether the planner thinks that they fit or not: they did."""
    boundless = replace(job, gpu=replace(job.gpu, memory_gib=float("inf")))
    return replace(choose(boundless, micro_batch_size, recompute, reshard), job=job)


def half_of(plan: StepPlan) -> StepPlan | None:
    """The plan with half the micro-batch, or the nearest below that divides; None when it is 1 already."""
    sequences = plan.micro_batch_size * plan.grad_accum_steps
    smaller = next((size for size in range(plan.micro_batch_size // 2, 0, -1) if sequences % size == 0), None)
    return _as_it_was(plan.job, smaller, plan.recompute, plan.reshard) if smaller else None


def horizon(settings: BaseTrainSettings, plan: StepPlan, usd_per_gpu_hour: float, path: Path) -> int:
    """Steps of the run: iterations where they are given, else hours or dollars, else FLOPs, else tokens per parameter.

    What hours or dollars buy is kept at `path`: a run that goes on at another speed keeps its schedule. Raises UserError where
    they do not buy a step, or cannot be turned into steps.
    """
    s, shape = settings, plan.job.shape
    if s.num_iterations < 1 and max(s.target_hours, s.target_usd) > 0:
        budget = {"target_hours": s.target_hours, "target_usd": s.target_usd, "usd_per_gpu_hour": usd_per_gpu_hour}
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            kept = read_json(path)
            if kept["budget"] == budget:
                return int(kept["steps"])
        share = evaluation_share(s.total_batch_size, s.eval_every, s.eval_tokens)
        steps = steps_within(plan, s.target_hours, s.target_usd, usd_per_gpu_hour, share)
        if not steps:
            raise UserError(f"--target_hours and --target_usd buy less than one step, which takes {plan.time.total:.1f} s; give more")
        write_json(path, {"budget": budget, "steps": steps})
        return steps
    return batch.num_iterations(
        shape.depth, shape.vocab_size, shape.seq_len, s.total_batch_size, s.num_iterations, s.target_flops, s.target_param_data_ratio
    )


def job_of(shape: Shape, total_batch_size: int, device_batch_size: int, kernels: Kernels, gpu: Gpu, ranks: Ranks) -> Job:
    """What the planner must know of a run on these ranks, each with such a GPU."""
    return Job(
        shape=shape,
        gpu=with_own_links(gpu, LINK_SHARE),
        world_size=ranks.world_size,
        shard_ranks=ranks.node_ranks,
        total_batch_size=total_batch_size,
        device_batch_size=device_batch_size,
        compute_bytes=kernels.dtype.itemsize,
        on_gpu=ranks.device.type == "cuda",
        fp8=kernels.fp8,
        recipe=kernels.recipe,
    )


def say_plan(plan: StepPlan) -> None:
    """The choice, and why, in a line."""
    job, micro = plan.job, plan.micro_batch_size
    asked = min(job.device_batch_size, micro * plan.grad_accum_steps)
    at_once = f"{micro} sequences" if micro == asked else f"{micro} sequences, of the {asked} a pass that were asked for,"
    say(
        f"step: {plan.grad_accum_steps} × {at_once} at once on each rank, recompute {plan.recompute_text}, "
        f"whole weights {'given up after each forward pass' if plan.reshard else 'kept through each pass'}: "
        f"the fastest predicted that fits; predicted peak {plan.peak_gib:.1f} of {job.gpu.memory_gib:.1f} GiB"
    )


def split_of(plan: StepPlan, ranks: Ranks) -> Split:
    """The split of the samples that a plan means."""
    return Split(ranks.rank, ranks.world_size, plan.micro_batch_size, plan.grad_accum_steps)


def plan_check(plan: StepPlan, ranks: Ranks) -> PlanCheck:
    """What holds the first steps against the plan."""
    return PlanCheck(plan.time.total, plan.allocated_gib, lambda: torch.cuda.max_memory_allocated(ranks.device) / GIB, plan.basis)
