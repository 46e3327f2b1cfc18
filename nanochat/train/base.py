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
from nanochat.model.gpt import GPT
from nanochat.optim.build import Optimizers
from nanochat.parallel.compiling import compile_model
from nanochat.parallel.precision import apply_precision, resolve_precision
from nanochat.parallel.ranks import Ranks, ranks
from nanochat.plan import batch, sizes
from nanochat.plan.hardware import Gpu, gpu_named
from nanochat.tokenizer.tokenizer import Tokenizer
from nanochat.train.card import model_card
from nanochat.train.checkpoint import Checkpoints, RunState
from nanochat.train.metrics import Metrics
from nanochat.train.run_directory import StageDirectory
from nanochat.train.settings import BaseTrainSettings
from nanochat.train.trainer import Evaluation, Trainer

PROMPTS = ("The function returns", "The most important thing to know about", "If the file does not exist,", "Once upon a time")
SAMPLE_TOKENS = 24


def train_base(settings: BaseTrainSettings) -> None:
    """Train, or go on training, a base model; at the end `runs/TAG/base/model/` stands. Raises UserError for a wrong request."""
    with ranks() as r:
        stage = StageDirectory(settings.tag, "base")
        with contextlib.ExitStack() as stack:
            r.from_first(lambda: stack.enter_context(stage.locked()))
            _train(settings, stage, r)
            r.barrier()


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
    micro_batch_size, grad_accum_steps = batch.micro_batches(s.total_batch_size, s.max_seq_len, r.world_size, s.device_batch_size)
    dtype = resolve_precision(s.precision, r.device)
    tokenizer, index = _open_tokens(s)
    num_iterations = batch.num_iterations(
        s.depth, tokenizer.vocab_size, s.max_seq_len, s.total_batch_size, s.num_iterations, s.target_flops, s.target_param_data_ratio
    )
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

    model = GPT(GPTConfig.from_depth(s.depth, tokenizer.vocab_size, s.max_seq_len))
    model.init_weights(torch.Generator().manual_seed(s.seed))
    model.to(r.device)
    optimizers = Optimizers(model, s, torch.bfloat16 if r.device.type == "cuda" and dtype != torch.float32 else torch.float32)
    checkpoints = Checkpoints(stage.checkpoints)
    state = checkpoints.load(model, optimizers)
    _check_start(state, num_iterations, stage, r)
    apply_precision(model, model.model.embed_tokens, dtype)
    compiled = s.compile and compile_model(model, r.device)

    split = Split(r.rank, r.world_size, micro_batch_size, grad_accum_steps)
    gpu = gpu_named(torch.cuda.get_device_name(r.device)) if r.device.type == "cuda" else None
    _say_what_starts(s, r, split, num_iterations, identity, dtype, compiled, train_samples, state.step)
    val_rows = max(1, min(val_samples.per_epoch, s.eval_tokens // s.max_seq_len))
    token_bytes = tokenizer.token_bytes()

    def val_bpb() -> dict[str, float]:
        return {"val_bpb": bits_per_byte(model, val_samples, val_rows, token_bytes, micro_batch_size, r)}

    def samples() -> dict[str, float]:
        if r.is_first:
            for prompt in PROMPTS:
                say(f"sample: {prompt}{complete(model, tokenizer, prompt, SAMPLE_TOKENS, temperature=0)}".replace("\n", "\\n"))
        return {}

    metrics = Metrics(stage.path, s.wandb_run, {**asdict(s), **identity}, state.step) if r.is_first else None
    try:
        Trainer(
            ranks=r,
            model=model,
            optimizers=optimizers,
            split=split,
            num_iterations=num_iterations,
            batches=lambda first_sample: micro_batches(train_samples, split, first_sample, r.device),
            evaluations=[Evaluation("val_bpb", s.eval_every, val_bpb), Evaluation("", s.sample_every, samples)],
            checkpoints=checkpoints,
            metrics=metrics,
            save_every=s.save_every,
            grad_clip=s.grad_clip,
            flops_per_token=sizes.flops_per_token(s.depth, tokenizer.vocab_size, s.max_seq_len),
            peak_flops=gpu.peak_bf16_flops * r.world_size if gpu else None,
            usd_per_hour=_usd_per_hour(s, gpu, r),
        ).run(state)
    finally:
        if metrics:
            metrics.close()
    if r.is_first:
        card = model_card(s.tag, s.depth, index.data, state, s.max_seq_len, tokenizer.vocab_size)
        save_model(stage.model, model, tokenizer, dtype, card)
        say(f"done: {stage.model}")


def _check_start(state: RunState, num_iterations: int, stage: StageDirectory, r: Ranks) -> None:
    """Raises UserError where the ranks would start from different states, or behind the end of the run."""
    first_step = r.from_first(lambda: state.step)
    if r.sum_(torch.tensor(float(state.step != first_step), device=r.device)).item():
        raise UserError(
            f"the nodes see different checkpoints in {stage.checkpoints}: NANOCHAT_BASE_DIR must be on a disk that all of them share"
        )
    if state.step > num_iterations:
        raise UserError(
            f"{stage.path} is at step {state.step} already, beyond the {num_iterations} asked for: "
            "ask for more, or choose another --model_tag"
        )


def _usd_per_hour(s: BaseTrainSettings, gpu: Gpu | None, r: Ranks) -> float:
    if s.usd_per_gpu_hour >= 0:
        return s.usd_per_gpu_hour * r.world_size
    return gpu.usd_per_hour * r.world_size if gpu else 0.0


def _say_what_starts(
    s: BaseTrainSettings,
    r: Ranks,
    split: Split,
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
    epochs = num_iterations * split.samples_per_step / train_samples.per_epoch
    say(
        f"{num_iterations:,} steps of {s.total_batch_size:,} tokens ({split.grad_accum_steps} × {split.micro_batch_size} sequences "
        f"a rank): "
        f"{tokens:,} tokens, {epochs:.2f} epochs of {train_samples.manifest.data} ({train_samples.manifest.tokenizer})"
    )
    if epochs > 4:
        warn(
            f"the text is repeated {epochs:.1f} times; more text learns better: "
            f"python -m scripts.dataset --data {train_samples.manifest.data} --num_shards N"
        )
    if start:
        say(f"going on after step {start}")
