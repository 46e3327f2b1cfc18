"""A stage of training: what every stage does with its model, whatever it is taught."""

import contextlib
import platform
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from nanochat.common.console import say, warn
from nanochat.common.errors import UserError
from nanochat.common.files import discard
from nanochat.data.loader import Batch, Split
from nanochat.model.checksums import verify_model, wrong_in_model
from nanochat.model.config import GPTConfig
from nanochat.model.directory import save_model
from nanochat.model.find import make_newest
from nanochat.model.gpt import GPT
from nanochat.model.init import initial_std
from nanochat.optim.build import Optimizers
from nanochat.parallel.compiling import say_compiling
from nanochat.parallel.kernels import settle_here
from nanochat.parallel.out_of_memory import Alarm, can_recover, recover
from nanochat.parallel.precision import newton_schulz_dtype
from nanochat.parallel.proofs import Size
from nanochat.parallel.ranks import Ranks, ranks
from nanochat.parallel.sharding import sharded_model, whole_weights
from nanochat.plan import batch, sizes
from nanochat.plan.choose import StepPlan
from nanochat.plan.sizes import Shape
from nanochat.tokenizer.tokenizer import Tokenizer
from nanochat.train.bad_steps import Guard, PassedSamples
from nanochat.train.checkpoint import Checkpoints, RunState
from nanochat.train.diagnosis import diagnose
from nanochat.train.hang_watch import LONGER, HangWatch
from nanochat.train.metrics import Metrics
from nanochat.train.mirror import open_mirror
from nanochat.train.mirroring import Mirroring
from nanochat.train.run_directory import StageDirectory
from nanochat.train.settings import OFF, TrainSettings
from nanochat.train.source import load_weights
from nanochat.train.step_plan import KeptPlan, half_of, job_of, plan_check, same_gpus, say_plan, split_of, this_gpu
from nanochat.train.trainer import Evaluation, Trainer

AGAIN = "again"  # in a stage's directory: its ranks stopped together, and its launcher is to start them again


@dataclass(frozen=True)
class Learner:
    """The model in training, as a stage's own parts see it."""

    model: GPT
    ranks: Ranks
    tokenizer: Tokenizer
    micro_batch_size: Callable[[], int]
    """Sequences that fit at once, now."""
    step: Callable[[], int]
    """Steps done."""
    whole_weights: Callable[[], AbstractContextManager[None]]
    """Within it every rank holds all weights, and forward passes need no other rank."""


@dataclass(frozen=True)
class Course:
    """What makes a stage: its settings, its data, its length, its evaluations."""

    stage: StageDirectory
    settings: TrainSettings
    """With nothing left to inherit."""
    identity: dict[str, Any]
    """What a resumed run must have in common with the one that began."""
    tokenizer: Tokenizer
    config: GPTConfig
    seq_len: int
    """Tokens of a row that are predicted."""
    source: Path | None
    """Model directory whose weights it starts from; None for new ones."""
    num_iterations: Callable[[StepPlan, float], int]
    """Steps, given the plan of a step and the price of a GPU for an hour."""
    announce: Callable[[int], None]
    """Says what is trained on, given the steps."""
    batches: Callable[[Learner, Split, int], Iterator[Batch]]
    """Endless micro-batches, given the split and the number of the first sample."""
    evaluations: Callable[[Learner], list[Evaluation]]
    card: Callable[[RunState], str]
    """The model card."""
    begin: Callable[[GPT], None] | None = None
    """Gives a new model what it begins with besides random numbers; None for nothing."""
    figures: Callable[[], dict[str, float]] = field(default=dict)
    """What the last step's row in metrics.jsonl has besides the usual."""


def in_stage(tag: str, name: str, work: Callable[[StageDirectory, Ranks], None]) -> None:
    """Do `work` as the one job that trains in `runs/TAG/NAME`."""
    with ranks() as r:
        in_stage_of(r, tag, name, work)


def in_stage_of(r: Ranks, tag: str, name: str, work: Callable[[StageDirectory, Ranks], None]) -> None:
    """As in_stage, for a job that has its ranks already."""
    stage = StageDirectory(tag, name)
    with contextlib.ExitStack() as stack:
        r.from_first(lambda: stack.enter_context(stage.locked()))
        r.from_first(lambda: (stage.path / AGAIN).unlink(missing_ok=True))
        work(stage, r)
        r.barrier()  # the first rank holds the directory until all are done


def already_done(stage: StageDirectory, identity: dict[str, Any], settings: TrainSettings, r: Ranks) -> bool:
    """Keep what this run is; whether its model stands already, which is said.

    Raises UserError when the directory belongs to a run of another identity or, finished, of another length, and where a step does
    not split over the ranks.
    """
    same_gpus(r.gather(torch.cuda.get_device_name(r.device) if r.device.type == "cuda" else "CPU"))
    if settings.mirror:
        r.from_first(lambda: open_mirror(settings.mirror, stage, identity))
    r.from_first(lambda: stage.settle(identity, asdict(settings)))
    done = r.from_first(lambda: _stands(stage))
    if done:
        r.from_first(lambda: _as_long(stage, asdict(settings)))
        say(f"already done: {stage.model} stands; to train it anew {stage.to_begin_anew}")
    return done


def _as_long(stage: StageDirectory, settings: dict[str, Any]) -> None:
    """Raises UserError where a finished stage was asked to be of another length: a short trial is not the run."""
    if other := stage.other_length(settings):
        raise UserError(f"{other}: to train it anew {stage.to_begin_anew}")


def _stands(stage: StageDirectory) -> bool:
    """Whether the stage's model is there and as it was written; one that is not is removed where checkpoints can make it again.

    Raises UserError where none can.
    """
    if not stage.model.exists():
        return False
    if (wrong := wrong_in_model(stage.model)) and any(stage.checkpoints.glob("step_*")):
        warn(f"{wrong}: the model is written again from {stage.checkpoints}")
        discard(stage.model)
        return False
    verify_model(stage.model)
    return True


def train(course: Course, r: Ranks) -> None:
    """Train, or go on training; at the end the stage's `model/` stands. Every rank calls it."""
    watched = r.world_size > 1 or r.device.type == "cuda"  # one CPU process has nothing to wait for, and may be slow
    with HangWatch(course.settings.hang_timeout if watched else OFF, course.stage.path / "stacks", r.rank) as watch:
        watch.alive("the beginning", LONGER)
        _train(course, r, watch)


def _train(course: Course, r: Ranks, watch: HangWatch) -> None:
    s, stage, config = course.settings, course.stage, course.config
    batch.micro_batches(s.total_batch_size, course.seq_len, r.world_size, s.device_batch_size)
    shape, gpu = Shape(config.num_layers, config.vocab_size, course.seq_len), this_gpu(r)
    kept = KeptPlan(stage.path / "step_plan.json", s, r.world_size, gpu)
    size = Size(r.device, shape.depth, shape.seq_len, shape.vocab_size)
    kernels = r.from_first(lambda: settle_here(gpu, s.precision, s.recipe, s.compile, size, kept.kernels()))
    kernels.take(r.world_size)
    dtype, recipe = kernels.dtype, kernels.recipe
    job = job_of(shape, s.total_batch_size, s.device_batch_size, kernels, gpu, r)
    plan = r.from_first(lambda: kept.choose(job))
    usd_per_gpu_hour = s.usd_per_gpu_hour if s.usd_per_gpu_hour >= 0 else job.gpu.usd_per_hour
    num_iterations = r.from_first(lambda: course.num_iterations(plan, usd_per_gpu_hour))

    if s.compile:
        say_compiling(r.device)
    model = sharded_model(
        config,
        r,
        r.mesh(),
        dtype,
        s.seed,
        recompute=plan.recompute,
        reshard=plan.reshard,
        recipe=recipe,
        fp8=kernels.fp8,
        std_of=partial(initial_std, projections=s.projection_std),
    )
    optimizers = Optimizers(model, s, newton_schulz_dtype(dtype), way=recipe.muon)
    checkpoints = Checkpoints(stage.checkpoints, r, s.keep_every)
    state = checkpoints.load(model, optimizers)
    if state.step == 0 and course.source:
        load_weights(model, course.source)
    elif state.step == 0 and course.begin:
        course.begin(model)
        if r.device.type == "cuda":
            torch.cuda.empty_cache()  # the embedding's table is larger than what a small model takes
    if state.step > num_iterations:
        raise UserError(
            f"{stage.path} is at step {state.step} already, beyond the {num_iterations} asked for: "
            "ask for more, or choose another --model_tag"
        )
    where = torch.cuda.get_device_name(r.device) if r.device.type == "cuda" else _cpu_text()
    say(
        f"{stage.stage} training {stage.tag}: {sizes.parameters(shape.depth, shape.vocab_size):,} parameters, depth {shape.depth}, "
        f"vocabulary {shape.vocab_size:,}, sequence {course.seq_len:,}; {r.world_size} × {where}, "
        f"{str(dtype).removeprefix('torch.')}{' with products in fp8' if kernels.fp8 else ''}, "
        f"{'not compiled' if recipe.compile == 'off' else 'compiled'}"
    )
    course.announce(num_iterations)
    if state.step:
        say(f"going on after step {state.step}")
    say(kernels.text)
    say_plan(plan)
    alarm = Alarm(stage.path / AGAIN)
    learner = Learner(
        model, r, course.tokenizer, lambda: trainer.split.micro_batch_size, lambda: state.step, lambda: whole_weights(model, plan.reshard)
    )

    def out_of_memory(step: int, updating: bool) -> Split:
        nonlocal plan
        half = half_of(plan)
        again = f"with {half.micro_batch_size} sequences at once instead of {plan.micro_batch_size}" if half else "when more is free"
        message = f"step {step}: rank {r.rank} ran out of memory, which the planner did not expect: another process may be using it"

        def last_words() -> tuple[str, bool]:
            if half:
                kept.keep(half)
            return f"{message}; every rank stops, and the same command goes on from the last checkpoint {again}", half is not None

        if half is None or updating or r.world_size > 1 or not can_recover(model):
            alarm.stop_all(last_words)
        warn(f"{message}; the step is tried again {again}")
        kept.keep(half)
        recover(model)
        plan = half
        trainer.plan_check = plan_check(plan, r) if trainer.plan_check else None
        return split_of(plan, r)

    mirror = Mirroring(stage.path, s.mirror, s.keep_every) if r.is_first and s.mirror else None
    metrics = Metrics(stage.path, s.wandb_run, state.step) if r.is_first else None
    trainer = Trainer(
        ranks=r,
        model=model,
        optimizers=optimizers,
        split=split_of(plan, r),
        seq_len=course.seq_len,
        num_iterations=num_iterations,
        batches=lambda split, first_sample: course.batches(learner, split, first_sample),
        evaluations=course.evaluations(learner),
        checkpoints=checkpoints,
        metrics=metrics,
        mirror=mirror,
        watch=watch,
        guard=Guard(
            ranks=r,
            metrics=metrics,
            passed=r.from_first(lambda: PassedSamples.read(stage.path / "passed_samples.json")),
            diagnose=lambda batches, split: diagnose(model, batches, split, course.tokenizer, r),
            max_bad_steps=s.max_bad_steps,
        ),
        save_every=s.save_every,
        grad_clip=s.grad_clip,
        flops_per_token=sizes.flops_per_token(shape.depth, shape.vocab_size, shape.seq_len),
        peak_flops=job.gpu.peak_bf16_flops * r.world_size if job.on_gpu else None,
        usd_per_hour=usd_per_gpu_hour * r.world_size if job.on_gpu else 0.0,
        out_of_memory=out_of_memory,
        plan_check=plan_check(plan, r) if job.on_gpu and r.is_first else None,
        figures=course.figures,
    )
    try:
        trainer.run(state)
        watch.alive("saving the model", LONGER)
        save_model(stage.model, model, course.tokenizer, dtype, course.card(state), r)
        r.from_first(lambda: make_newest(stage.model))
        say(f"done: {stage.model}")
        trainer.await_mirror(state)
    finally:
        alarm.close()
        checkpoints.close()
        if mirror:
            mirror.kill()
        if metrics:
            metrics.close()


def _cpu_text() -> str:
    return f"CPU ({torch.get_num_threads()} threads, {platform.machine()})"
