"""A grid from its file to its table."""

import os
from pathlib import Path

from nanochat.ablate.curves import draw
from nanochat.ablate.grid import BASELINE, Grid, check_text, read_grid
from nanochat.ablate.record import check_place, record
from nanochat.ablate.results import HEADER, Result, compare, read_results, rows
from nanochat.ablate.run import Runner
from nanochat.ablate.settings import AblateSettings
from nanochat.common.console import say, show_table
from nanochat.common.errors import UserError
from nanochat.common.files import atomic_path
from nanochat.common.locks import TakenError, locked
from nanochat.common.markdown import table
from nanochat.common.paths import base_dir, tokenizer_dir, tokens_dir
from nanochat.data.defaults import resolve_data, resolve_tokenizer
from nanochat.data.token_shards import read_index
from nanochat.tokenizer.tokenizer import Tokenizer

WORTH_A_RUN = 0.02
"""Share by which a change's steps take more or less time than the baseline's, from which on equal time is another run."""


def ablate(s: AblateSettings) -> None:
    """Do what is left of a grid, and say what came of it. Raises UserError for a grid that cannot be run, or whose runs failed."""
    grid = read_grid(Path(s.file))
    if s.record:
        check_place(Path(s.file))
    vocab_size, tokens_there = _text(grid)
    check_text(grid, vocab_size, tokens_there)
    directory = base_dir() / "ablations" / grid.name
    directory.mkdir(parents=True, exist_ok=True)
    try:
        with locked(directory / ".lock", patience_s=0):
            path = directory / "results.jsonl"
            runner = Runner(grid, vocab_size, read_results(path), path, _devices(s.jobs))
            _ablate(runner, s.equal_time)
            if s.record:
                say(f"kept in {record(Path(s.file), _wanted(runner))} too")
    except TakenError:
        raise UserError(f"another process is at work in {directory}: wait for it, or call the file otherwise") from None


def _ablate(runner: Runner, equal_time: bool) -> None:
    runs = runner.grid.runs()
    plain = [run for run in runs if run.change == BASELINE]
    changed = [run for run in runs if run.change != BASELINE]
    left = sum(runner.done(run, "tokens") is None for run in runs)
    say(f"{len(runs)} runs, {left} of them to do, {len(runner.devices)} at a time")
    if failed := runner.do(plain, "tokens"):
        name, why = next(iter(failed.items()))
        raise UserError(f"the baseline has not finished, and there is nothing to hold a change against: {name}: {why}")
    failed = runner.do(changed, "tokens")
    if equal_time:
        slower = {(each.change, each.depth): each.slower for each in compare(runner.results) if each.equal == "tokens"}
        again = [run for run in changed if abs(slower.get((run.change, run.depth), 1) - 1) > WORTH_A_RUN]
        failed |= runner.do([runner.in_the_baselines_time(run) for run in again], "time")
    _show(runner)
    if failed:
        raise UserError(f"{len(failed)} runs failed, and are tried again by the same command: {', '.join(failed)}")


def _wanted(runner: Runner) -> list[Result]:
    changes = {BASELINE, *runner.grid.changes}
    return [each for each in runner.results if each.change in changes and each.depth in runner.grid.depths]


def _show(runner: Runner) -> None:
    results = _wanted(runner)
    directory = runner.path.parent
    with atomic_path(directory / "table.md") as aside:
        aside.write_text(table(HEADER, rows(results)) + "\n", encoding="utf-8")
    pictures = [draw(results, depth, directory / f"d{depth}.png") for depth in runner.grid.depths]
    show_table(HEADER, rows(results))
    say(f"kept in {directory}: table.md, results.jsonl, {', '.join(path.name for path in pictures)}")


def _text(grid: Grid) -> tuple[int, int]:
    """Entries of the tokenizer, and tokens of text to train on."""
    data, name = resolve_data(grid.baseline.get("data")), resolve_tokenizer(grid.baseline.get("tokenizer"))
    tokenizer = Tokenizer.from_directory(tokenizer_dir(name))
    index = read_index(tokens_dir(data, tokenizer.hash))
    return tokenizer.vocab_size, sum(shard.tokens for shard in index.shards if shard.split == "train")


def _devices(jobs: int) -> list[str]:
    """For each run at a time its GPU, in turn; empty strings where there is none."""
    import torch

    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if torch.cuda.is_available() else []
    if torch.cuda.is_available() and gpus == [""]:
        gpus = [str(number) for number in range(torch.cuda.device_count())]
    if jobs < 1:
        jobs = len(gpus) or max(1, (os.cpu_count() or 1) // 2)
    return [gpus[number % len(gpus)] if gpus else "" for number in range(jobs)]
