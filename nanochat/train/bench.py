"""How fast the training step is and what memory it takes: the trainer's own parts, on random data and weights."""

import contextlib
import json
import math
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanochat.common.console import say
from nanochat.common.errors import UserError
from nanochat.data.loader import Batch, Split
from nanochat.model.config import GPTConfig
from nanochat.model.init import initial_std
from nanochat.optim.build import Optimizers
from nanochat.parallel.compiling import say_compiling
from nanochat.parallel.kernels import Kernels, settle_here
from nanochat.parallel.precision import newton_schulz_dtype
from nanochat.parallel.proofs import Size
from nanochat.parallel.ranks import Ranks, ranks
from nanochat.parallel.sharding import clip_gradients, sharded_model
from nanochat.parallel.simulation import LonelyExchange, one_rank_of
from nanochat.plan import measurements
from nanochat.plan.choose import RESHARD, StepPlan, choose
from nanochat.plan.hardware import GPUS
from nanochat.plan.memory import GIB
from nanochat.plan.recompute import Recompute
from nanochat.plan.sizes import Shape
from nanochat.plan.step import Job, traffic_time
from nanochat.train.bench_baseline import eager_step
from nanochat.train.bench_settings import OFF, BenchTrainSettings
from nanochat.train.settings import BaseTrainSettings
from nanochat.train.step import accumulate_gradients
from nanochat.train.step_plan import job_of, say_plan, split_of, this_gpu
from nanochat.train.trainer import peak_memory_gib

WARMUP_S = 8.0  # by then a GPU is at its power limit
PROFILED_STEPS, TOP_KERNELS = 2, 20
FALLBACK_STD = 0.02

Batches = Iterator[Batch]


def nonzero_std(name: str, parameter: Tensor) -> float:
    """The trainer's start, but no zeros: products with zeros draw less power and run faster than real ones."""
    return initial_std(name, parameter) or FALLBACK_STD


def random_batches(settings: BenchTrainSettings, split: Split, device: torch.device) -> Batches:
    """Endless random micro-batches on the device."""
    generator = torch.Generator(device=device).manual_seed(1 + split.rank)
    while True:
        shape = (split.micro_batch_size, settings.max_seq_len + 1)
        rows = torch.randint(0, settings.vocab_size, shape, generator=generator, device=device)
        yield Batch(rows[:, :-1].contiguous(), rows[:, 1:].contiguous(), split.samples_per_step * settings.max_seq_len)


def seconds_since_start() -> float | None:
    """Since this process began, its imports included; None where the system does not say."""
    try:
        began_ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return float(Path("/proc/uptime").read_text().split()[0]) - began_ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None


class Clock:
    """Seconds by phase: a GPU's own, which nobody waits for, so that what it is told to do comes early as in training."""

    def __init__(self, device: torch.device):
        self._on_gpu = device.type == "cuda"
        self._marks: list[tuple[str, Any]] = []
        self.tick("")

    def tick(self, phase: str) -> None:
        """What passed since the last tick belongs to `phase`."""
        now: Any = time.perf_counter()
        if self._on_gpu:
            now = torch.cuda.Event(enable_timing=True)
            now.record()
        self._marks.append((phase, now))

    def seconds(self) -> dict[str, float]:
        """Of each phase."""
        if self._on_gpu:
            torch.cuda.synchronize()
        found: dict[str, float] = defaultdict(float)
        for (_, before), (phase, after) in pairwise(self._marks):
            found[phase] += before.elapsed_time(after) / 1000 if self._on_gpu else after - before
        return found


@dataclass
class Bench:
    """A model, its optimizers and random data, as the trainer would have them."""

    settings: BenchTrainSettings
    ranks: Ranks
    kernels: Kernels
    job: Job
    plan: StepPlan

    def __post_init__(self) -> None:
        s, r = self.settings, self.ranks
        kernels, mesh = self.kernels, r.mesh()
        kernels.take(r.world_size)
        self.model = sharded_model(
            GPTConfig.from_depth(s.depth, s.vocab_size, s.max_seq_len),
            r,
            mesh,
            kernels.dtype,
            seed=0,
            recompute=self.plan.recompute,
            reshard=self.plan.reshard,
            recipe=kernels.recipe,
            fp8=kernels.fp8,
            std_of=nonzero_std,
        )
        exchange = LonelyExchange(mesh) if s.simulate else None
        self.optimizers = Optimizers(self.model, BaseTrainSettings(), newton_schulz_dtype(kernels.dtype), exchange, kernels.recipe.muon)
        self.split = split_of(self.plan, r)
        self.batches = random_batches(s, self.split, r.device)

    def step(self, after: Callable[[str], object] = lambda phase: None) -> float:
        """One step as the trainer makes it; returns its loss, and waits for the GPU."""
        loss, _ = accumulate_gradients(self.model, self.batches, self.split, after)
        clip_gradients(self.model, 1.0)
        self.optimizers.step(0, 1000)
        self.model.zero_grad(set_to_none=True)
        after("optimizer")
        return self.ranks.sum_(loss).item() * (self.ranks.world_size if self.settings.simulate else 1)

    def timed(self) -> float:
        """Seconds of one step."""
        began = time.perf_counter()
        loss = self.step()
        if self.ranks.device.type == "cuda":
            torch.cuda.synchronize()
        if not math.isfinite(loss):
            raise RuntimeError(f"the benchmark's loss became {loss}: its timings would not be those of training")
        return time.perf_counter() - began

    def phases(self) -> dict[str, float]:
        """Seconds of forward, backward and optimizer of one step."""
        clock = Clock(self.ranks.device)
        self.step(clock.tick)
        return clock.seconds()

    def profile(self) -> str:
        """The kernels that take the most time, as a table."""
        from torch.profiler import ProfilerActivity, profile

        on_gpu = self.ranks.device.type == "cuda"
        with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiler:
            for _ in range(PROFILED_STEPS):
                self.timed()
        key = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
        return profiler.key_averages().table(sort_by=key, row_limit=TOP_KERNELS, max_name_column_width=90)


@contextlib.contextmanager
def _ranks(settings: BenchTrainSettings) -> Iterator[Ranks]:
    if not settings.simulate:
        with ranks() as real:
            yield real
        return
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("--simulate runs one rank alone: start it without torchrun, or leave it out")
    with one_rank_of(settings.world_size) as simulated:
        yield simulated


def bench_train(settings: BenchTrainSettings) -> None:
    """Measure, and print the figures."""
    with _ranks(settings) as r:
        with contextlib.redirect_stdout(sys.stderr if settings.json else sys.stdout):
            result, profile = _measure(settings, r)
        if not r.is_first:
            return
        if settings.record:
            measurements.record(measurements.row_of(result, measurements.today()))
        if profile:
            say(profile)
        if settings.json:
            print(json.dumps(result))
            return
        for name, value in result.items():
            text = f"{value:,.3f}" if isinstance(value, float) and value < 1000 else f"{value:,.0f}" if isinstance(value, float) else value
            say(f"{name:>24}  {text}")


def _measure(s: BenchTrainSettings, r: Ranks) -> tuple[dict[str, Any], str]:
    shape, gpu = Shape(s.depth, s.vocab_size, s.max_seq_len), this_gpu(r)
    kernels = r.from_first(lambda: settle_here(gpu, s.precision, s.recipe, s.compile, Size(r.device, s.depth, s.max_seq_len, s.vocab_size)))
    job = job_of(shape, s.tokens(r.world_size), s.sequences, kernels, gpu, r)
    if s.record and not job.on_gpu:
        raise UserError("--record: the planner's table holds GPUs only, and this machine has none")
    if s.record and job.gpu.name not in [gpu.name for gpu in GPUS]:
        raise UserError(f"--record: {job.gpu.name} is not in the planner's table of GPUs (nanochat/plan/hardware.py): add it there first")
    recompute = None if s.recompute == "auto" else Recompute.parse(s.recompute, s.depth)
    plan = choose(job, None if s.micro_batch_size == OFF else s.micro_batch_size, recompute, RESHARD[s.reshard_after_forward])
    if s.compile:
        say_compiling(r.device)
    say(kernels.text)
    say_plan(plan)
    bench = Bench(s, r, kernels, job, plan)
    first_step_s = bench.timed()
    after_start_s = seconds_since_start()
    warmup_s = s.warmup_s if s.warmup_s != OFF else WARMUP_S if job.on_gpu else 0.0
    passed = bench.timed()
    while passed < warmup_s:
        passed += bench.timed()
    if job.on_gpu:
        torch.cuda.reset_peak_memory_stats(r.device)
    eager = eager_step(s, bench.split.micro_batch_size, r.device) if s.baseline else None
    step_s, eager_s = [], []
    for _ in range(s.num_iterations):
        step_s.append(bench.timed())
        if eager:
            eager_s.append(eager())
    phases = [bench.phases() for _ in range(min(3, s.num_iterations))]
    result = _result(s, r, plan, statistics.median(step_s)) | {"first_step_s": first_step_s, "first_step_after_start_s": after_start_s}
    result |= {f"{name}_s": statistics.median(each[name] for each in phases) for name in ("forward", "backward", "optimizer")}
    if eager:
        eager_tok_per_s = bench.split.micro_batch_size * s.max_seq_len / statistics.median(eager_s)
        result |= {"eager_tok_per_s": eager_tok_per_s, "ratio": result["tok_per_s"] / eager_tok_per_s}
    return result, bench.profile() if s.profile else ""


def _result(s: BenchTrainSettings, r: Ranks, plan: StepPlan, step_s: float) -> dict[str, Any]:
    """The figures: speeds of this rank; memory in GiB; times in seconds; then what was run."""
    job = plan.job
    on_gpu = job.on_gpu
    tok_per_s = job.total_batch_size / r.world_size / step_s
    return {
        "tok_per_s": tok_per_s,
        "mfu": tok_per_s * job.shape.flops_per_token / job.gpu.peak_bf16_flops if on_gpu else None,
        "peak_allocated_gib": peak_memory_gib(r.device),
        "peak_reserved_gib": torch.cuda.max_memory_reserved(r.device) / GIB if on_gpu else None,
        "predicted_allocated_gib": plan.allocated_gib,
        "step_s": step_s,
        "predicted_step_s": plan.time.total - (plan.time.communication if s.simulate else 0) if on_gpu else None,
        "traffic_s": traffic_time(job, plan.grad_accum_steps, plan.reshard) if on_gpu else None,
        "device": torch.cuda.get_device_name(r.device) if on_gpu else "CPU",
        "gpu": job.gpu.name,
        "precision": job.precision,
        "depth": s.depth,
        "max_seq_len": s.max_seq_len,
        "vocab_size": s.vocab_size,
        "world_size": r.world_size,
        "simulated": s.simulate,
        "total_batch_size": job.total_batch_size,
        "device_batch_size": s.sequences,
        "micro_batch_size": plan.micro_batch_size,
        "grad_accum_steps": plan.grad_accum_steps,
        "recompute": plan.recompute_text,
        "reshard": plan.reshard,
        "recipe": job.recipe.text,
        "compiled": job.recipe.compile != "off",
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }
