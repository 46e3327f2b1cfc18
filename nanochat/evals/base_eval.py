"""The evaluation of a base model: CORE, a table, and core.json."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nanochat.common.console import say, show_table, warn
from nanochat.common.errors import UserError
from nanochat.common.files import read_json, write_json
from nanochat.common.paths import base_dir, data_dir
from nanochat.data.text_shards import iter_texts, text_shards
from nanochat.evals.base_eval_settings import BaseEvalSettings
from nanochat.evals.core.bundle import CoreTask, open_bundle
from nanochat.evals.core.core import CoreResult, core_metric, evaluate_core_task
from nanochat.evals.core.fetch import bundle_directory
from nanochat.evals.overlap import count_overlap
from nanochat.model.checksums import digest_of_finished
from nanochat.model.directory import load_model
from nanochat.model.find import find_model
from nanochat.parallel.precision import evaluation_dtype
from nanochat.parallel.ranks import Ranks, ranks

RESULT_FILE = "core.json"


def base_eval(settings: BaseEvalSettings) -> None:
    """Evaluate a model; at the end its stage's directory holds core.json. Raises UserError for a wrong request."""
    with ranks() as r:
        _evaluate(settings, r)


def _evaluate(s: BaseEvalSettings, r: Ranks) -> None:
    started = time.perf_counter()
    directory = r.from_first(lambda: find_model((s.source,), s.model_tag))
    bundle = r.from_first(lambda: bundle_directory(s.bundle))
    tasks = open_bundle(bundle)
    weights = r.from_first(lambda: digest_of_finished(directory))
    model, tokenizer = load_model(directory, r.device, evaluation_dtype(r.device))
    say(f"evaluating {directory} on {len(tasks)} tasks of {bundle}")
    results: dict[str, CoreResult] = {}
    for task in tasks:
        result = evaluate_core_task(model, tokenizer, task, r, s.max_per_task, s.tokens_at_once)
        results[task.name] = result
        say(f"{task.name}: {result.accuracy:.1%} of {result.total:,}, centred {result.centered:.4f}, in {result.seconds:.1f} s")
        if result.cut:
            say(f"{task.name}: {result.cut:,} questions are longer than the context and lost their beginning")
    if r.is_first:
        found = _overlap(s, directory, tasks)
        value = {
            "model": str(directory.relative_to(base_dir())),
            "weights": weights,
            "core": core_metric(results),
            "tasks": {name: result.to_json() for name, result in results.items()},
            "bundle": "small" if s.bundle == "small" else str(bundle),
            "max_per_task": s.max_per_task,
            "overlap": found,
            "elapsed_s": time.perf_counter() - started,
        }
        write_json(directory.parent / RESULT_FILE, value)
        _show(results)
        say(f"CORE {value['core']:.4f}, the mean of {len(results)} centred accuracies")
        if found:
            say(
                f"{found['found']:,} of {found['questions']:,} questions ({found['share']:.2%}) have 13 words in a row that stand in "
                f"{found['text']}; {found['too_short']:,} are too short to look for"
            )


def _show(results: dict[str, CoreResult]) -> None:
    rows = []
    for name, result in results.items():
        one = result.to_json()
        span = f"{one['low']:.1%} to {one['high']:.1%}"
        figures = [f"{result.accuracy:.1%}", span, f"{result.chance:.0%}", f"{result.centered:.4f}", f"{result.total:,}", str(result.shots)]
        rows.append([name, *figures])
    show_table(["task", "accuracy", "95 % interval", "guessing", "centred", "questions", "shots"], rows)


def _overlap(s: BaseEvalSettings, directory: Path, tasks: list[CoreTask]) -> dict[str, Any] | None:
    """How many questions stand in the training text; None, which is said, where that text is not here."""
    if s.overlap_shards == 0:
        return None
    name = s.data or ""
    if not name:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            name = str(read_json(directory.parent / "config.json")["identity"]["data"])
    if not (name and list(data_dir(name).glob("shard_*.parquet"))):
        if s.data:
            raise UserError(f"--data={s.data}: there are no text shards in {data_dir(s.data)}")
        warn("the training text is not here: the questions are not looked for in it")
        return None
    shards = text_shards(name).train
    looked_at = shards if s.overlap_shards < 0 else shards[: s.overlap_shards]
    questions = {task.name: [question.text for question in task.questions] for task in tasks}
    try:
        found = count_overlap(questions, _texts(looked_at))
    except UserError as error:  # a damaged shard: what was measured is kept all the same
        warn(f"the questions are not looked for in the training text: {error}")
        return None
    return found.to_json(f"{len(looked_at)} of {len(shards)} training shards of {name}")


def _texts(shards: list[Path]) -> Iterator[list[str]]:
    for shard in shards:
        yield from iter_texts(shard)
