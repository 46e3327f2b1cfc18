"""Preference learning: the model moves towards the replies that were preferred."""

from dataclasses import replace

from nanochat.common.console import say
from nanochat.common.files import write_json
from nanochat.common.paths import named_path
from nanochat.data.conversation_file import PreferenceFile
from nanochat.evals.tasks.identity import PERSONA_KEPT, Persona
from nanochat.parallel.ranks import Ranks, ranks
from nanochat.tokenizer.conversation import Renderer
from nanochat.train.card import chat_card
from nanochat.train.chat import open_source, row_length, source_identity
from nanochat.train.chat_samples import chat_samples
from nanochat.train.dpo_settings import DpoSettings
from nanochat.train.preferences import REFERENCE_FILE, Pairs, Preferences
from nanochat.train.run_directory import StageDirectory
from nanochat.train.source import SourceModel, find_source
from nanochat.train.stage import Course, already_done, in_stage_of, train


def train_dpo(settings: DpoSettings) -> None:
    """Train the stage dpo from a finished chat model; at the end `runs/TAG/dpo/model/` stands. Raises UserError for a wrong request."""
    with ranks() as r:
        r.from_first(lambda: len(PreferenceFile(named_path(settings.preferences))))
        source = r.from_first(lambda: find_source(settings.source, settings.model_tag, ("rl", "sft", "mid")))
        in_stage_of(r, source.tag, "dpo", lambda stage, r: _train(settings, source, stage, r))


def _train(settings: DpoSettings, source: SourceModel, stage: StageDirectory, r: Ranks) -> None:
    tokenizer, config = open_source(source, r)
    seq_len = row_length(settings, config)
    file = PreferenceFile(named_path(settings.preferences))
    preferences = Preferences.of(file, Renderer(tokenizer), seq_len)
    pairs_per_step = min(settings.pairs_per_step, preferences.pairs)
    pairs_per_step = max(1, pairs_per_step // r.world_size) * r.world_size
    s = replace(settings, model_tag=source.tag, max_seq_len=seq_len, total_batch_size=2 * pairs_per_step * seq_len)
    identity = {**source_identity(s, source, tokenizer, config), "preferences": file.fingerprint(), "beta": s.beta, "pairs": pairs_per_step}
    if already_done(stage, identity, s, r):
        return
    persona = Persona.kept(source.stage)
    r.from_first(lambda: write_json(stage.path / PERSONA_KEPT, persona.to_json()))
    if not r.from_first(stage.checkpoints.exists):  # of a run that was killed before it kept anything, perhaps from another source
        r.from_first(lambda: (stage.path / REFERENCE_FILE).unlink(missing_ok=True))
    pairs = Pairs(preferences, s.beta, pairs_per_step, s.seed, r, stage.path / REFERENCE_FILE)
    num_iterations = s.num_iterations if s.num_iterations > 0 else max(1, round(s.num_epochs * preferences.pairs / pairs_per_step))

    def announce(steps: int) -> None:
        left_out = f"; {preferences.too_long:,} pairs are longer than a row and left out" if preferences.too_long else ""
        epochs = steps * pairs_per_step / preferences.pairs
        say(f"{steps:,} steps of {pairs_per_step} pairs: {epochs:.2f} epochs of {preferences.pairs:,} pairs{left_out}")

    course = Course(
        stage=stage,
        settings=s,
        identity=identity,
        tokenizer=tokenizer,
        config=config,
        seq_len=seq_len,
        source=source.directory,
        num_iterations=lambda plan, usd_per_gpu_hour: num_iterations,
        announce=announce,
        batches=pairs.batches,
        evaluations=lambda learner: [chat_samples(stage, learner, s.sample_every)],
        card=lambda state: chat_card(stage, config, source, persona.name, ["preferences"], state),
        figures=lambda: pairs.figures,
    )
    train(course, r)
