"""Base training: a new model learns to continue text."""

import time
from typing import Any

import torch
from torch import Tensor

from nanochat.common.console import say, warn
from nanochat.common.paths import tokenizer_dir, tokens_dir
from nanochat.data.defaults import resolve_data, resolve_tokenizer
from nanochat.data.loader import micro_batches
from nanochat.data.neighbours import embedding_of_text
from nanochat.data.samples import Manifest, Samples
from nanochat.data.token_shards import TokenIndex, read_index, verify_shards
from nanochat.engine.batch import complete
from nanochat.engine.sample import Sampling
from nanochat.evals.bits_per_byte import bits_per_byte
from nanochat.evals.core.bundle import open_bundle
from nanochat.evals.core.core import core_metric, evaluate_core_task
from nanochat.evals.core.fetch import bundle_directory
from nanochat.model.config import GPTConfig
from nanochat.model.gpt import GPT
from nanochat.model.init import look_back
from nanochat.parallel.ranks import Ranks
from nanochat.parallel.sharding import begin_with, rows_held
from nanochat.plan import batch
from nanochat.tokenizer.tokenizer import Tokenizer
from nanochat.train.card import base_card
from nanochat.train.run_directory import StageDirectory
from nanochat.train.samples_file import keep_samples
from nanochat.train.settings import BaseTrainSettings
from nanochat.train.stage import Course, Learner, already_done, in_stage, train
from nanochat.train.step_plan import horizon
from nanochat.train.trainer import Evaluation

PROMPTS = ("The function returns", "The most important thing to know about", "If the file does not exist,", "Once upon a time")
SAMPLE_TOKENS = 24
TOKENS_AT_ONCE = 16_384  # of a batch of CORE's questions


def train_base(settings: BaseTrainSettings) -> None:
    """Train, or go on training, a base model; at the end `runs/TAG/base/model/` stands. Raises UserError for a wrong request."""
    in_stage(settings.tag, "base", lambda stage, r: _train(settings, stage, r))


def _open_tokens(settings: BaseTrainSettings) -> tuple[Tokenizer, TokenIndex]:
    data, name = resolve_data(settings.data), resolve_tokenizer(settings.tokenizer)
    tokenizer = Tokenizer.from_directory(tokenizer_dir(name))
    return tokenizer, read_index(tokens_dir(data, tokenizer.hash))


def _freeze(stage: StageDirectory, index: TokenIndex, settings: BaseTrainSettings) -> dict[str, Any]:
    """The run's manifest, after every shard that was not yet was held against its checksum."""
    manifest = Manifest.of(index, "train", settings.max_seq_len, settings.seed)
    verify_shards(index)
    return stage.frozen("manifest.json", manifest.to_json())


def _train(s: BaseTrainSettings, stage: StageDirectory, r: Ranks) -> None:
    batch.micro_batches(s.total_batch_size, s.max_seq_len, r.world_size, s.device_batch_size)
    tokenizer, index = _open_tokens(s)
    identity = {
        "depth": s.depth,
        "vocab_size": tokenizer.vocab_size,
        "max_seq_len": s.max_seq_len,
        "data": index.data,
        "tokenizer": tokenizer.hash,
        "seed": s.seed,
    }
    if already_done(stage, identity, s, r):
        return
    manifest = Manifest.from_json(r.from_first(lambda: _freeze(stage, index, s)))
    train_samples = Samples(manifest, index.directory)
    val_samples = Samples(Manifest.of(index, "val", s.max_seq_len, s.seed), index.directory, shuffle=False)
    val_rows = max(1, min(val_samples.per_epoch, s.eval_tokens // s.max_seq_len))
    token_bytes = tokenizer.token_bytes()
    # Before training, so that a bundle that is not there is no surprise at the first evaluation.
    core_tasks = open_bundle(r.from_first(lambda: bundle_directory(s.bundle))) if s.core_metric_every > 0 else []

    def evaluations(learner: Learner) -> list[Evaluation]:
        model = learner.model

        def val_bpb() -> dict[str, float]:
            return {"val_bpb": bits_per_byte(model, val_samples, val_rows, token_bytes, learner.micro_batch_size(), r)}

        def samples() -> dict[str, float]:
            with learner.whole_weights():
                texts = [complete(model, tokenizer, prompt, SAMPLE_TOKENS, Sampling(temperature=0)) for prompt in PROMPTS]
            r.from_first(lambda: keep_samples(stage, learner.step(), PROMPTS, texts))
            return {}

        def core() -> dict[str, float]:
            with learner.whole_weights():
                results = {
                    task.name: evaluate_core_task(model, tokenizer, task, r, s.core_metric_max_per_task, TOKENS_AT_ONCE)
                    for task in core_tasks
                }
            return {"core": core_metric(results)}

        return [
            Evaluation("val_bpb", s.eval_every, val_bpb),
            Evaluation("core", s.core_metric_every, core),
            Evaluation("", s.sample_every, samples),
        ]

    config = GPTConfig.from_depth(s.depth, tokenizer.vocab_size, s.max_seq_len)
    course = Course(
        stage=stage,
        settings=s,
        identity=identity,
        tokenizer=tokenizer,
        config=config,
        seq_len=s.max_seq_len,
        source=None,
        num_iterations=lambda plan, usd_per_gpu_hour: horizon(s, plan, usd_per_gpu_hour, stage.path / "horizon.json"),
        announce=lambda num_iterations: _announce(s, num_iterations, train_samples),
        batches=lambda _, split, first_sample: micro_batches(train_samples, split, first_sample, r.device),
        evaluations=evaluations,
        begin=lambda model: _begin(model, train_samples, s, r),
        card=lambda state: base_card(s.tag, s.depth, index.data, state, s.max_seq_len, tokenizer.vocab_size),
    )
    train(course, r)


def _begin(model: GPT, samples: Samples, s: BaseTrainSettings, r: Ranks) -> None:
    """Give a new model what it begins with besides random numbers."""
    if s.embedding_init == "text":
        embedding = model.model.embed_tokens.weight
        begin_with(embedding, _embedding_of(samples, embedding.size(0), embedding.size(1), r.device) if r.is_first else None, r)
    if s.attention_init == "previous":
        look_back(model, rows_held)


def _embedding_of(samples: Samples, vocab_size: int, width: int, device: torch.device) -> Tensor:
    began = time.monotonic()
    rows = embedding_of_text(samples.shards, vocab_size, width, device)
    say(f"the embedding begins with what the text says of each token's neighbours ({time.monotonic() - began:.1f} s)")
    return rows


def _announce(s: BaseTrainSettings, num_iterations: int, train_samples: Samples) -> None:
    tokens = num_iterations * s.total_batch_size
    epochs = tokens / s.max_seq_len / train_samples.per_epoch
    data = train_samples.manifest.data
    say(
        f"{num_iterations:,} steps of {s.total_batch_size:,} tokens: {tokens:,} tokens, {epochs:.2f} epochs of "
        f"{data} ({train_samples.manifest.tokenizer})"
    )
    if epochs > 4:
        warn(f"the text is repeated {epochs:.1f} times; more text learns better: python -m scripts.dataset --data {data} --num_shards N")
