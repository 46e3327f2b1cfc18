"""Reinforcement learning: the model answers questions that can be checked, and says more often what was right."""

from dataclasses import replace

from nanochat.common.console import say
from nanochat.common.errors import UserError
from nanochat.common.files import write_json
from nanochat.evals.task_eval import Asking, evaluate_task, examples_on_all
from nanochat.evals.tasks.identity import PERSONA_KEPT, Persona
from nanochat.evals.tasks.registry import TaskOptions, find_tasks, task_dir_of
from nanochat.parallel.ranks import Ranks, ranks
from nanochat.train.card import chat_card
from nanochat.train.chat import open_source, row_length, source_identity
from nanochat.train.chat_samples import chat_samples
from nanochat.train.rl_settings import RlSettings
from nanochat.train.rollouts import Questions, Rollouts
from nanochat.train.run_directory import StageDirectory
from nanochat.train.source import SourceModel, find_source
from nanochat.train.stage import Course, Learner, already_done, in_stage_of, train
from nanochat.train.trainer import Evaluation

NOMINAL = 8_000  # questions of an epoch of an endless task


def train_rl(settings: RlSettings) -> None:
    """Train the stage rl from a finished chat model; at the end `runs/TAG/rl/model/` stands. Raises UserError for a wrong request."""
    with ranks() as r:
        source = r.from_first(lambda: find_source(settings.source, settings.model_tag, ("sft", "mid")))
        in_stage_of(r, source.tag, "rl", lambda stage, r: _train(settings, source, stage, r))


def _train(settings: RlSettings, source: SourceModel, stage: StageDirectory, r: Ranks) -> None:
    tokenizer, config = open_source(source, r)
    seq_len = row_length(settings, config)
    answers = settings.examples_per_step * settings.num_samples
    if answers % r.world_size:
        raise UserError(f"--examples_per_step × --num_samples = {answers} answers do not split over {r.world_size} ranks")
    s = replace(settings, model_tag=source.tag, max_seq_len=seq_len, total_batch_size=answers * seq_len)
    shape_of_a_step = {"tasks": s.task_names(), "examples_per_step": s.examples_per_step, "num_samples": s.num_samples}
    identity = {**source_identity(s, source, tokenizer, config), **shape_of_a_step}
    if already_done(stage, identity, s, r):
        return
    persona = Persona.kept(source.stage)
    tasks = find_tasks(s.task_names(), TaskOptions(task_dir_of(s.task_dir), persona))
    questions = Questions(tasks, [examples_on_all(task, "train", r) for task in tasks], s.seed)
    if s.eval_every > 0:  # now, so that what is missing is no surprise at the first evaluation
        for task in tasks:
            examples_on_all(task, "test", r)
    rollouts = Rollouts(s, questions, tokenizer, r)
    num_iterations = s.num_iterations
    if num_iterations < 1:
        num_iterations = max(1, round(s.num_epochs * questions.per_epoch(NOMINAL) / s.examples_per_step))
    r.from_first(lambda: write_json(stage.path / PERSONA_KEPT, persona.to_json()))

    def evaluations(learner: Learner) -> list[Evaluation]:
        def accuracy() -> dict[str, float]:
            asking = Asking(max_problems=s.eval_examples, max_new_tokens=s.max_new_tokens, batch_size=4 * learner.micro_batch_size())
            with learner.whole_weights():
                results = {task.name: evaluate_task(learner.model, tokenizer, task, r, asking) for task in tasks}
            return {name: result.accuracy for name, result in results.items()}

        return [Evaluation(tasks[0].name, s.eval_every, accuracy), chat_samples(stage, learner, s.sample_every)]

    def announce(steps: int) -> None:
        say(
            f"{steps:,} steps of {s.num_samples} answers to {s.examples_per_step} questions of {', '.join(s.task_names())}; "
            f"{steps * s.examples_per_step / questions.per_epoch(NOMINAL):.2f} epochs"
        )

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
        batches=rollouts.batches,
        evaluations=evaluations,
        card=lambda state: chat_card(stage, config, source, persona.name, s.task_names(), state),
        figures=lambda: rollouts.figures,
    )
    train(course, r)
