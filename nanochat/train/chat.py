"""Midtraining and supervised fine-tuning: a model learns to converse."""

from dataclasses import replace
from typing import TypeVar

from nanochat.common.errors import UserError
from nanochat.common.files import write_json
from nanochat.common.paths import named_path
from nanochat.data.conversation_file import ConversationFile
from nanochat.data.loader import micro_batches
from nanochat.evals.held_out_loss import held_out_loss
from nanochat.evals.tasks.identity import PERSONA_KEPT
from nanochat.model.config import GPTConfig
from nanochat.parallel.ranks import Ranks, ranks
from nanochat.plan import batch
from nanochat.tokenizer.conversation import Renderer
from nanochat.tokenizer.tokenizer import Tokenizer
from nanochat.train.card import chat_card
from nanochat.train.chat_data import ChatData, persona_of, say_mixture
from nanochat.train.chat_samples import chat_samples
from nanochat.train.chat_settings import ChatTrainSettings, SftSettings, StageSettings
from nanochat.train.run_directory import StageDirectory
from nanochat.train.source import SourceModel, find_source
from nanochat.train.stage import Course, Learner, already_done, in_stage_of, train
from nanochat.train.trainer import Evaluation

SFT_TOKENS = 65_536  # a step of fine-tuning, at most: its mixture is small, and a few large steps teach little

S = TypeVar("S", bound=StageSettings)


def train_chat(settings: ChatTrainSettings, name: str, usual: tuple[str, ...]) -> None:
    """Train the stage `name` from the model of one of the `usual` stages; at the end `runs/TAG/NAME/model/` stands.

    Raises UserError for a wrong request.
    """
    with ranks() as r:
        own = r.from_first(lambda: _fingerprint(settings.conversations)) if settings.conversations else ""
        source = r.from_first(lambda: find_source(settings.source, settings.model_tag, usual))
        in_stage_of(r, source.tag, name, lambda stage, r: _train(settings, own, source, stage, r))


def _fingerprint(conversations: str) -> str:
    return ConversationFile(named_path(conversations)).fingerprint()


def row_length(s: StageSettings, config: GPTConfig) -> int:
    """Tokens of a row. Raises UserError for more than the model's context."""
    if s.max_seq_len > config.max_seq_len:
        raise UserError(f"--max_seq_len={s.max_seq_len}: the model takes {config.max_seq_len} tokens at most")
    return s.max_seq_len if s.max_seq_len > 0 else config.max_seq_len


def inherit(s: S, source: SourceModel, config: GPTConfig, r: Ranks) -> S:
    """The settings with what they leave to the source filled in. Raises UserError for rows longer than the model's context."""
    seq_len = row_length(s, config)
    device_batch_size = s.device_batch_size if s.device_batch_size > 0 else int(source.setting("device_batch_size", 32))
    total = s.total_batch_size
    if total < 1:
        total = int(source.setting("total_batch_size", 524_288))
        if isinstance(s, SftSettings):
            a_pass = seq_len * r.world_size
            total = min(total, max(1, SFT_TOKENS // a_pass) * a_pass)
    return replace(s, model_tag=source.tag, max_seq_len=seq_len, device_batch_size=device_batch_size, total_batch_size=total)


def open_source(source: SourceModel, r: Ranks) -> tuple[Tokenizer, GPTConfig]:
    """Tokenizer and shape of the model that training starts from."""
    return r.from_first(source.open)


def source_identity(s: StageSettings, source: SourceModel, tokenizer: Tokenizer, config: GPTConfig) -> dict[str, object]:
    """What every stage that starts from a model keeps of itself."""
    return {
        "source": source.name,
        "depth": config.num_layers,
        "vocab_size": config.vocab_size,
        "context": config.max_seq_len,
        "max_seq_len": s.max_seq_len,
        "data": source.identity.get("data", ""),
        "tokenizer": tokenizer.hash,
        "seed": s.seed,
    }


def _train(settings: ChatTrainSettings, own: str, source: SourceModel, stage: StageDirectory, r: Ranks) -> None:
    tokenizer, config = open_source(source, r)
    s = inherit(settings, source, config, r)
    batch.micro_batches(s.total_batch_size, s.max_seq_len, r.world_size, s.device_batch_size)
    persona = persona_of(s.persona, source, config.num_layers, config.vocab_size)
    identity = {
        **source_identity(s, source, tokenizer, config),
        "mixture": s.mixture(),
        "conversations": own,
        "persona": f"{persona.name} ({persona.digest()})",
    }
    if already_done(stage, identity, s, r):
        return
    data = ChatData.of(s, persona, Renderer(tokenizer), stage, r)
    rows_per_step = s.total_batch_size // s.max_seq_len
    num_iterations = s.num_iterations
    if num_iterations < 1:
        num_iterations = max(1, round(s.num_epochs * data.train.rows_per_pass / rows_per_step))
    record = data.record(num_iterations * rows_per_step)
    r.from_first(lambda: write_json(stage.path / "mixture.json", record))
    r.from_first(lambda: write_json(stage.path / PERSONA_KEPT, persona.to_json()))

    def evaluations(learner: Learner) -> list[Evaluation]:
        def val_loss() -> dict[str, float]:
            assert data.held_out is not None
            num_rows = max(1, min(data.held_out.rows_per_pass, s.eval_tokens // s.max_seq_len))
            return {"val_loss": held_out_loss(learner.model, data.held_out, num_rows, learner.micro_batch_size(), r)}

        held_out = [Evaluation("val_loss", s.eval_every, val_loss)] if data.held_out else []
        return [*held_out, chat_samples(stage, learner, s.sample_every)]

    course = Course(
        stage=stage,
        settings=s,
        identity=identity,
        tokenizer=tokenizer,
        config=config,
        seq_len=s.max_seq_len,
        source=source.directory,
        num_iterations=lambda plan, usd_per_gpu_hour: num_iterations,
        announce=lambda steps: say_mixture(record, data.train.fill(), steps),
        batches=lambda _, split, first_sample: micro_batches(data.train, split, first_sample, r.device),
        evaluations=evaluations,
        card=lambda state: chat_card(stage, config, source, persona.name, list(record["parts"]), state),
    )
    train(course, r)
