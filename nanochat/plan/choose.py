"""The micro-batch, and what is recomputed, that make a step fit in memory at the highest predicted speed."""

from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from nanochat.common.errors import UserError
from nanochat.plan import batch, sizes
from nanochat.plan.memory import FRAGMENTATION, GIB, Memory, step_memory
from nanochat.plan.profile import basis, measured
from nanochat.plan.recompute import LEVELS, Recompute
from nanochat.plan.step import Job, StepTime, own_step_s, step_time

PEAK_SHARE = 0.95  # of the memory that everything together may take
RESERVED_SHARE = 0.93  # of the memory that the allocator may hold
RESHARD = {"auto": None, "always": True, "never": False}  # what --reshard_after_forward takes


@dataclass(frozen=True)
class StepPlan:
    """How a step is run, and what that takes."""

    job: Job
    """What it is a plan of."""
    micro_batch_size: int
    """Sequences that a rank handles at once."""
    grad_accum_steps: int
    """Micro-batches that a rank takes in a step."""
    recompute: Recompute
    """What the backward pass computes again."""
    reshard: bool
    """Whether weights are given up after the forward pass and brought together again for the backward pass."""
    memory: Memory
    """Predicted bytes of a rank at the peak."""
    time: StepTime
    """Predicted seconds of a step."""

    @property
    def fits(self) -> bool:
        """Whether the memory is enough, with a margin."""
        return self.spare_gib >= 0

    @property
    def spare_gib(self) -> float:
        """Memory that is left below the margin, GiB; negative by what is short."""
        room = self.job.gpu.memory_gib
        return min(PEAK_SHARE * room - self.peak_gib, RESERVED_SHARE * room - self.reserved_gib)

    @property
    def peak_gib(self) -> float:
        """Predicted peak of everything, GiB."""
        return self.memory.peak / GIB

    @property
    def allocated_gib(self) -> float:
        """Predicted peak of torch.cuda.max_memory_allocated(), GiB."""
        return self.memory.allocated / GIB

    @property
    def reserved_gib(self) -> float:
        """Predicted peak of torch.cuda.max_memory_reserved(), GiB."""
        return self.memory.allocated * (1 + FRAGMENTATION) / GIB

    @property
    def tok_per_s(self) -> float:
        """Predicted tokens a second of the whole job."""
        return self.job.total_batch_size / self.time.total

    @property
    def mfu(self) -> float:
        """Predicted share of the dense bf16 peak of all GPUs."""
        return self.tok_per_s * self.job.shape.flops_per_token / (self.job.world_size * self.job.gpu.peak_bf16_flops)

    @property
    def estimated(self) -> bool:
        """Whether the speed rests on no measurement of this kind of GPU."""
        return not measured(self.job.gpu, self.job.precision, self.job.shape.depth)

    @property
    def basis(self) -> str:
        """What the speed rests on, in words."""
        return basis(self.job.gpu, self.job.precision, self.job.shape.depth)

    @property
    def recompute_text(self) -> str:
        """What --recompute takes."""
        return self.recompute.text(self.job.shape.depth)


def choose(job: Job, micro_batch_size: int | None = None, recompute: Recompute | None = None, reshard: bool | None = None) -> StepPlan:
    """The fastest predicted plan that fits; what is given is kept, what is None is chosen.

    Raises UserError for a batch that does not divide, and where nothing fits: what is short by how much, and the nearest that does.
    """
    plan = best(job, micro_batch_size, recompute, reshard)
    if not plan.fits:
        raise UserError(what_is_short(plan, micro_batch_size, recompute, reshard))
    return plan


def best(job: Job, micro_batch_size: int | None = None, recompute: Recompute | None = None, reshard: bool | None = None) -> StepPlan:
    """Like `choose`; but where nothing fits, the plan that takes the least memory, whose `fits` is false.

    Where ways to make this very step were measured on this machine, the fastest of those.
    """
    wanted = (micro_batch_size, recompute, reshard)
    tried = [
        _plan(job, micro, again, give_up) for micro, _, again, give_up in own_step_s(job) if _is_wanted((micro, again, give_up), wanted)
    ]
    if own := fastest(tried):
        return own[0]
    plans = list(_candidates(job, *wanted))
    if fitting := fastest(plans):
        return fitting[0]
    return min(plans, key=lambda plan: plan.memory.peak)  # there is a micro-batch of one sequence, or the one that was asked for


def _is_wanted(way: tuple[object, ...], wanted: tuple[object, ...]) -> bool:
    return all(asked is None or asked == has for has, asked in zip(way, wanted, strict=True))


def fastest(plans: list[StepPlan]) -> list[StepPlan]:
    """Those that fit, the fastest predicted first, each once."""
    found: list[StepPlan] = []
    for plan in sorted((plan for plan in plans if plan.fits), key=_order):
        if plan not in found:
            found.append(plan)
    return found


def ways(job: Job) -> list[StepPlan]:
    """What there is to choose from, the fastest predicted first."""
    return fastest(list(_candidates(job, None, None, None)))


def _order(plan: StepPlan) -> tuple[float, Recompute, int, bool]:
    """The smaller the better: seconds (to six digits), then what is recomputed, the number of micro-batches, giving up weights."""
    return float(f"{plan.time.total:.6g}"), plan.recompute, plan.grad_accum_steps, plan.reshard


def micro_batch_sizes(job: Job) -> list[int]:
    """Sequences that a micro-batch can have: what divides a rank's sequences, up to --device_batch_size, the largest first."""
    largest, steps = batch.micro_batches(job.total_batch_size, job.shape.seq_len, job.world_size, job.device_batch_size)
    return [size for size in range(largest, 0, -1) if (largest * steps) % size == 0]


def _candidates(job: Job, micro_batch_size: int | None, recompute: Recompute | None, reshard: bool | None) -> Iterator[StepPlan]:
    """For every micro-batch, and weights kept or given up: at each level of recomputing the fewest layers that fit, and the most."""
    allowed = micro_batch_sizes(job)
    sequences = job.total_batch_size // (job.shape.seq_len * job.world_size)
    if micro_batch_size is not None:
        _check_micro_batch(micro_batch_size, sequences)
        allowed = [micro_batch_size]
    depth = job.shape.depth
    for size in allowed:
        for give_up in (False, True) if reshard is None else (reshard,):

            def plan(again: Recompute, size: int = size, give_up: bool = give_up) -> StepPlan:
                return _plan(job, size, again, give_up)

            if recompute is not None:
                yield plan(recompute)
                continue
            for level in range(len(LEVELS)):
                whole = plan(Recompute(level, depth))
                yield whole
                if level and depth > 1:
                    yield _fewest_layers(plan, level, depth - 1)
                if not level and whole.fits:
                    break


def _plan(job: Job, micro_batch_size: int, recompute: Recompute, reshard: bool) -> StepPlan:
    accum = job.total_batch_size // (job.shape.seq_len * job.world_size) // micro_batch_size
    memory = step_memory(
        job.shape,
        micro_batch_size,
        recompute,
        reshard,
        job.shard_ranks,
        job.compute_bytes,
        job.on_gpu,
        accumulates=accum > 1,
        fp8=job.fp8,
        by_products=job.recipe.attention == "products",
        kept_fp8=job.fp8 and job.recipe.fp8_weights == "kept",
    )
    time = step_time(job, micro_batch_size, accum, recompute, reshard)
    return StepPlan(job, micro_batch_size, accum, recompute, reshard, memory, time)


def _fewest_layers(plan: Callable[[Recompute], StepPlan], level: int, most: int) -> StepPlan:
    """The plan of the fewest layers at a level that fits; that of the most when none does. Memory falls with every layer."""
    low, high = 1, most
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if plan(Recompute(level, middle)).fits else (middle + 1, high)
    return plan(Recompute(level, low))


def _check_micro_batch(micro_batch_size: int, sequences: int) -> None:
    if micro_batch_size >= 1 and sequences % micro_batch_size == 0:
        return
    below = next((size for size in range(min(micro_batch_size - 1, sequences), 0, -1) if sequences % size == 0), None)
    above = next((size for size in range(max(micro_batch_size + 1, 1), sequences + 1) if sequences % size == 0), None)
    nearest = " and ".join(str(size) for size in (below, above) if size)
    raise UserError(
        f"--micro_batch_size={micro_batch_size}: does not divide the {sequences} sequences that a rank takes in a step; "
        f"the nearest that divide are {nearest}"
    )


def what_is_short(plan: StepPlan, micro_batch_size: int | None, recompute: Recompute | None, reshard: bool | None) -> str:
    """A sentence on a plan that does not fit: what was asked for, what it needs of what there is, and the nearest that fits."""
    job = plan.job
    depth = job.shape.depth
    asked = f"--micro_batch_size={micro_batch_size} " if micro_batch_size is not None else ""
    asked += f"--recompute={recompute.text(depth)} " if recompute is not None else ""
    asked += f"--reshard_after_forward={reshard_text(reshard)} " if reshard is not None else ""
    what = asked.strip() or f"depth {depth} on {job.world_size} × {job.gpu.name}"
    least = "" if asked else "at least "
    short = f"{-plan.spare_gib:.1f} more than can be used"
    needs = f"{what} needs {least}{plan.peak_gib:.1f} GiB of the {job.gpu.memory_gib:.1f} that {_each(job)} has, {short}"
    ways = []
    if micro_batch_size is not None:
        ways.append(_way(best(job, None, recompute, reshard), "micro_batch_size"))
    if recompute is not None:
        ways.append(_way(best(job, micro_batch_size, None, reshard), "recompute"))
    if not any(ways) and (reshard is not None or len(ways) > 1):
        ways.append(_way(best(job), "micro_batch_size", "recompute", "reshard"))
    ways = ways if any(ways) else _other_jobs(job)
    nearest = " or ".join(filter(None, ways)) or "none, for even one layer does not fit"
    return f"{needs}; the nearest that fits: {nearest}"


def _each(job: Job) -> str:
    return "a rank" if job.gpu.is_cpu else "one GPU"


def reshard_text(reshard: bool) -> str:
    """What --reshard_after_forward takes."""
    return next(text for text, value in RESHARD.items() if value is reshard)


def _way(plan: StepPlan, *names: str) -> str:
    if not plan.fits:
        return ""
    flags = {
        "micro_batch_size": f"--micro_batch_size={plan.micro_batch_size}",
        "recompute": f"--recompute={plan.recompute_text}",
        "reshard": f"--reshard_after_forward={reshard_text(plan.reshard)}",
    }
    return " ".join(flags[name] for name in names)


def _other_jobs(job: Job) -> list[str]:
    """A smaller model here, or this one on more GPUs in the node."""
    depths = [depth for depth in range(1, job.shape.depth) if sizes.divides_evenly(depth)]
    fitting = bisect_left(depths, True, key=lambda depth: not best(replace(job, shape=replace(job.shape, depth=depth))).fits)
    ways = [f"--depth={depths[fitting - 1]}"] if fitting else []
    if not job.on_gpu or job.world_size != job.shard_ranks:
        return ways
    sequences = job.total_batch_size // job.shape.seq_len
    for ranks in (2, 4, 8):
        more = replace(job, world_size=ranks, shard_ranks=ranks)
        if ranks > job.world_size and sequences % ranks == 0 and best(more).fits:
            return [*ways, f"{ranks} GPUs"]
    return ways
