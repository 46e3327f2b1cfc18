"""Base training: a new model learns to continue text."""

import contextlib
import platform
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import torch

from nanochat.common.console import say, warn
from nanochat.common.errors import UserError
from nanochat.common.paths import tokenizer_dir, tokens_dir
from nanochat.data.defaults import resolve_data, resolve_tokenizer
from nanochat.data.loader import Split, micro_batches
from nanochat.data.samples import Manifest, Samples
from nanochat.data.token_shards import TokenIndex, read_index, verify_shard
from nanochat.engine.generate import complete
from nanochat.evals.bits_per_byte import bits_per_byte
from nanochat.model.config import GPTConfig
from nanochat.model.directory import save_model
from nanochat.optim.build import Optimizers
from nanochat.parallel.attention import prefer_cudnn_attention
from nanochat.parallel.compiling import can_compile
from nanochat.parallel.out_of_memory import Alarm, can_recover, recover
from nanochat.parallel.precision import newton_schulz_dtype, resolve_precision
from nanochat.parallel.ranks import Ranks, ranks
from nanochat.parallel.sharding import sharded_model
from nanochat.plan import batch, sizes
from nanochat.plan.sizes import Shape
from nanochat.tokenizer.tokenizer import Tokenizer
from nanochat.train.card import model_card
from nanochat.train.checkpoint import Checkpoints, RunState
from nanochat.train.metrics import Metrics
from nanochat.train.run_directory import StageDirectory
from nanochat.train.settings import BaseTrainSettings
from nanochat.train.step_plan import KeptPlan, half_of, horizon, job_of, plan_check, same_gpus, say_plan, split_of
from nanochat.train.trainer import Evaluation, Trainer

PROMPTS = ("The function returns", "The most important thing to know about", "If the file does not exist,", "Once upon a time")
SAMPLE_TOKENS = 24
AGAIN = "again"  # in a stage's directory: its ranks stopped together, and its launcher is to start them again


def train_base(settings: BaseTrainSettings) -> None:
    """Train, or go on training, a base model; at the end `runs/TAG/base/model/` stands. Raises UserError for a wrong request."""
    with ranks() as r:
        stage = StageDirectory(settings.tag, "base")
        with contextlib.ExitStack() as stack:
            r.from_first(lambda: stack.enter_context(stage.locked()))
            r.from_first(lambda: (stage.path / AGAIN).unlink(missing_ok=True))
            _train(settings, stage, r)
            r.barrier()  # the first rank holds the directory until all are done


def _open_tokens(settings: BaseTrainSettings) -> tuple[Tokenizer, TokenIndex]:
    data, name = resolve_data(settings.data), resolve_tokenizer(settings.tokenizer)
    tokenizer = Tokenizer.from_directory(tokenizer_dir(name))
    return tokenizer, read_index(tokens_dir(data, tokenizer.hash))


def _freeze(stage: StageDirectory, index: TokenIndex, settings: BaseTrainSettings) -> dict[str, Any]:
    """The run's manifest; a new run first reads every shard once and compares its checksum."""
    manifest = Manifest.of(index, "train", settings.max_seq_len, settings.seed)
    if not stage.checkpoints.exists():
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda shard: verify_shard(index, shard), index.shards))
    return stage.frozen("manifest.json", manifest.to_json())


def _train(settings: BaseTrainSettings, stage: StageDirectory, r: Ranks) -> None:
    s = settings
    batch.micro_batches(s.total_batch_size, s.max_seq_len, r.world_size, s.device_batch_size)
    same_gpus(r.gather(torch.cuda.get_device_name(r.device) if r.device.type == "cuda" else "CPU"))
    dtype = resolve_precision(s.precision, r.device)
    tokenizer, index = _open_tokens(s)
    identity = {
        "depth": s.depth,
        "vocab_size": tokenizer.vocab_size,
        "max_seq_len": s.max_seq_len,
        "data": index.data,
        "tokenizer": tokenizer.hash,
        "seed": s.seed,
    }
    r.from_first(lambda: stage.settle(identity, asdict(s)))
    if r.from_first(stage.model.exists):
        say(f"already done: {stage.model} stands; to train it anew choose another --model_tag, or remove {stage.path}")
        return
    manifest = Manifest.from_json(r.from_first(lambda: _freeze(stage, index, s)))
    train_samples = Samples(manifest, index.directory)
    val_samples = Samples(Manifest.of(index, "val", s.max_seq_len, s.seed), index.directory, shuffle=False)

    shape = Shape(s.depth, tokenizer.vocab_size, s.max_seq_len)
    job = job_of(shape, s.total_batch_size, s.device_batch_size, dtype, r)
    kept = KeptPlan(stage.path / "step_plan.json", job, s)
    plan = r.from_first(kept.choose)
    usd_per_gpu_hour = s.usd_per_gpu_hour if s.usd_per_gpu_hour >= 0 else job.gpu.usd_per_hour
    num_iterations = r.from_first(lambda: horizon(s, plan, usd_per_gpu_hour, stage.path / "horizon.json"))

    compiled = s.compile and can_compile(r.device)
    config = GPTConfig.from_depth(s.depth, tokenizer.vocab_size, s.max_seq_len)
    prefer_cudnn_attention(r.device, dtype, s.max_seq_len, config.head_dim)
    model = sharded_model(config, r, r.mesh(), dtype, s.seed, recompute=plan.recompute, reshard=plan.reshard, compiled=compiled)
    optimizers = Optimizers(model, s, newton_schulz_dtype(dtype, r.device))
    checkpoints = Checkpoints(stage.checkpoints, r)
    state = checkpoints.load(model, optimizers)
    _check_start(state, num_iterations, stage)

    _say_what_starts(s, r, num_iterations, identity, dtype, compiled, train_samples, state.step)
    say_plan(plan)
    val_rows = max(1, min(val_samples.per_epoch, s.eval_tokens // s.max_seq_len))
    token_bytes = tokenizer.token_bytes()
    alarm = Alarm(stage.path / AGAIN)

    def val_bpb() -> dict[str, float]:
        return {"val_bpb": bits_per_byte(model, val_samples, val_rows, token_bytes, trainer.split.micro_batch_size, r)}

    def samples() -> dict[str, float]:
        for prompt in PROMPTS:
            text = complete(model, tokenizer, prompt, SAMPLE_TOKENS, temperature=0, agree=r.first_ones)
            say(f"sample: {prompt}{text}".replace("\n", "\\n"))
        return {}

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

    peak_flops = job.gpu.peak_bf16_flops * r.world_size if job.on_gpu else None
    metrics = Metrics(stage.path, s.wandb_run, {**asdict(s), **identity}, state.step) if r.is_first else None
    trainer = Trainer(
        ranks=r,
        model=model,
        optimizers=optimizers,
        split=split_of(plan, r),
        num_iterations=num_iterations,
        batches=lambda split, first_sample: micro_batches(train_samples, split, first_sample, r.device),
        evaluations=[Evaluation("val_bpb", s.eval_every, val_bpb), Evaluation("", s.sample_every, samples)],
        checkpoints=checkpoints,
        metrics=metrics,
        save_every=s.save_every,
        grad_clip=s.grad_clip,
        flops_per_token=sizes.flops_per_token(s.depth, tokenizer.vocab_size, s.max_seq_len),
        peak_flops=peak_flops,
        usd_per_hour=usd_per_gpu_hour * r.world_size if job.on_gpu else 0.0,
        out_of_memory=out_of_memory,
        plan_check=plan_check(plan, r) if job.on_gpu and r.is_first else None,
    )
    try:
        trainer.run(state)
    finally:
        alarm.close()
        checkpoints.close()
        if metrics:
            metrics.close()
    card = model_card(s.tag, s.depth, index.data, state, s.max_seq_len, tokenizer.vocab_size)
    save_model(stage.model, model, tokenizer, dtype, card, r)
    say(f"done: {stage.model}")


def _check_start(state: RunState, num_iterations: int, stage: StageDirectory) -> None:
    """Raises UserError for a run that is behind its end already."""
    if state.step > num_iterations:
        raise UserError(
            f"{stage.path} is at step {state.step} already, beyond the {num_iterations} asked for: "
            "ask for more, or choose another --model_tag"
        )


def _say_what_starts(
    s: BaseTrainSettings,
    r: Ranks,
    num_iterations: int,
    identity: dict[str, Any],
    dtype: torch.dtype,
    compiled: bool,
    train_samples: Samples,
    start: int,
) -> None:
    where = (
        torch.cuda.get_device_name(r.device)
        if r.device.type == "cuda"
        else f"CPU ({torch.get_num_threads()} threads, {platform.machine()})"
    )
    say(
        f"base training {s.tag}: {sizes.parameters(s.depth, identity['vocab_size']):,} parameters, depth {s.depth}, "
        f"vocabulary {identity['vocab_size']:,}, sequence {s.max_seq_len:,}; {r.world_size} × {where}, "
        f"{str(dtype).removeprefix('torch.')}, {'compiled' if compiled else 'not compiled'}"
    )
    tokens = num_iterations * s.total_batch_size
    epochs = tokens / s.max_seq_len / train_samples.per_epoch
    say(
        f"{num_iterations:,} steps of {s.total_batch_size:,} tokens: {tokens:,} tokens, {epochs:.2f} epochs of "
        f"{train_samples.manifest.data} ({train_samples.manifest.tokenizer})"
    )
    if epochs > 4:
        warn(
            f"the text is repeated {epochs:.1f} times; more text learns better: "
            f"python -m scripts.dataset --data {train_samples.manifest.data} --num_shards N"
        )
    if start:
        say(f"going on after step {start}")
