"""The evaluation of a chat model: its tasks one after the other, a table, and chat_eval.json."""

import contextlib
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nanochat.common.console import say, show_table, warn
from nanochat.common.errors import UserError
from nanochat.common.files import read_json, write_json
from nanochat.common.paths import base_dir, named_path
from nanochat.evals.chat_eval_settings import ChatEvalSettings
from nanochat.evals.task_eval import Asking, TaskResult, evaluate_task
from nanochat.evals.tasks.identity import Persona
from nanochat.evals.tasks.registry import CHAT_CORE, TaskOptions, find_tasks, task_dir_of
from nanochat.evals.tasks.task import TaskUnavailable
from nanochat.model.checksums import digest_of_finished
from nanochat.model.directory import load_model
from nanochat.model.find import find_model
from nanochat.parallel.precision import evaluation_dtype
from nanochat.parallel.ranks import Ranks, ranks
from nanochat.sandbox.run import SandboxUnavailable

RESULT_FILE = "chat_eval.json"
CHAT_STAGES = ("dpo", "rl", "sft", "mid")


def chat_eval(settings: ChatEvalSettings) -> None:
    """Evaluate a model; at the end its stage's directory holds chat_eval.json. Raises UserError for a wrong request."""
    with ranks() as r:
        _evaluate(settings, r)


def _evaluate(s: ChatEvalSettings, r: Ranks) -> None:
    started = time.perf_counter()
    stages = CHAT_STAGES if s.source == "auto" else (s.source,)
    directory = r.from_first(lambda: find_model(stages, s.model_tag))
    persona = Persona.of(named_path(s.persona)) if s.persona else Persona.kept(directory.parent)
    options = TaskOptions(task_dir_of(s.task_dir), persona, s.allow_unsafe_execution)
    tasks = find_tasks(s.tasks(), options)
    weights = r.from_first(lambda: digest_of_finished(directory))
    model, tokenizer = load_model(directory, r.device, evaluation_dtype(r.device))
    stage = directory.parent.name
    say(f"evaluating {directory}")
    asking = Asking(s.temperature, s.top_k, s.num_samples, s.batch_size, s.max_problems, s.max_new_tokens, s.seed)
    results: dict[str, TaskResult] = {}
    skipped: dict[str, str] = {}
    for task in tasks:
        try:
            results[task.name] = evaluate_task(model, tokenizer, task, r, asking)
            say(f"{task.name}: {results[task.name].accuracy:.1%} of {results[task.name].total:,} in {results[task.name].seconds:.1f} s")
        except (TaskUnavailable, SandboxUnavailable) as error:
            skipped[task.name] = str(error)
            warn(f"{task.name} is skipped: {error}")
    if not results:
        raise UserError(f"no task could be asked: {'; '.join(f'{name}: {why}' for name, why in skipped.items())}")
    if r.is_first:
        kept = _keep(directory, weights, stage, results, skipped, s, time.perf_counter() - started)
        _show(results, kept)


def _keep(
    directory: Path,
    weights: str,
    stage: str,
    results: dict[str, TaskResult],
    skipped: dict[str, str],
    s: ChatEvalSettings,
    elapsed_s: float,
) -> dict[str, Any]:
    """Put the results into chat_eval.json, beside those of tasks that were asked before; returns what it then holds."""
    path = directory.parent / RESULT_FILE
    tasks: dict[str, Any] = {}
    old_skipped: dict[str, str] = {}
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        before = read_json(path)
        if weights and before["weights"] == weights:  # else they were another model's
            tasks, old_skipped = dict(before["tasks"]), dict(before["skipped"])
    tasks |= {name: result.to_json() for name, result in results.items()}
    all_skipped = {name: why for name, why in {**old_skipped, **skipped}.items() if name not in tasks}
    core = [tasks[name]["centered"] for name in CHAT_CORE if name in tasks]
    value = {
        "model": str(directory.relative_to(base_dir())),
        "weights": weights,
        "stage": stage,
        "chatcore": sum(core) / len(core) if core else None,
        "chatcore_tasks": [name for name in CHAT_CORE if name in tasks],
        "tasks": tasks,
        "skipped": all_skipped,
        "settings": asdict(s),
        "elapsed_s": elapsed_s,
    }
    write_json(path, value)
    return value


def _show(results: dict[str, TaskResult], kept: dict[str, Any]) -> None:
    header = ["task", "accuracy", "95 % interval", "questions", "guessing", "constant"]
    rows = []
    for name, result in results.items():
        one = result.to_json()
        constant = "" if result.best_constant is None else f"{result.best_constant:.1%}"
        span = f"{one['low']:.1%} to {one['high']:.1%}"
        rows.append([name, f"{result.accuracy:.1%}", span, f"{result.total:,}", f"{result.chance:.1%}", constant])
        if result.too_long:
            say(f"{name}: {result.too_long:,} questions are longer than the context and count as wrong")
        if one["pass_at_k"] is not None:
            say(f"{name}: pass@{result.num_samples} {one['pass_at_k']:.1%}")
    show_table(header, rows)
    there = kept["chatcore_tasks"]
    if there:
        missing = [name for name in CHAT_CORE if name not in there]
        without = f"; without {', '.join(missing)}" if missing else ""
        say(f"ChatCORE {kept['chatcore']:.4f}, the mean of {len(there)} centred accuracies{without}")
