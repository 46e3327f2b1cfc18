"""The runs of a grid, each a base_train of its own, some at the same time."""

import os
import statistics
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from nanochat.ablate.grid import BASELINE, Grid, Run
from nanochat.ablate.results import Result, append_result, tokens_at
from nanochat.common.console import say, warn
from nanochat.common.errors import UserError
from nanochat.common.files import remove
from nanochat.common.paths import run_dir
from nanochat.common.processes import DIES_WITH
from nanochat.plan.profile import machine_of, torch_version
from nanochat.train.metrics import hms, read_metrics

EVALUATIONS = 20
"""Of a run, where its grid does not say how often."""
QUIET = {"sample_every": -1, "core_metric_every": -1, "run": "dummy"}


class FailedError(Exception):
    """A run that did not come to its end; the message says why."""


class Runner:
    """Does runs, and keeps what they come to."""

    def __init__(self, grid: Grid, vocab_size: int, results: list[Result], path: Path, devices: list[str]):
        """results: those that are done already, in `path`; devices: for each job its GPU, or empty strings on a CPU."""
        self.grid, self.vocab_size, self.results, self.path, self.devices = grid, vocab_size, results, path, devices

    def do(self, runs: Iterable[Run], equal: str) -> dict[str, str]:
        """Do those that are not done; returns why each that failed did."""
        left = [run for run in runs if self.done(run, equal) is None]
        free: SimpleQueue[str] = SimpleQueue()
        for device in self.devices:
            free.put(device)

        def one(run: Run) -> Result:
            device = free.get()
            try:
                return self._train(run, equal, device)
            finally:
                free.put(device)

        failed = {}
        with ThreadPoolExecutor(len(self.devices)) as pool:
            try:
                under_way = {pool.submit(one, run): run for run in left}
                for number, future in enumerate(as_completed(under_way), 1):
                    run = under_way[future]
                    try:
                        result = future.result()
                    except FailedError as error:
                        warn(f"{run.name} failed: {error}")
                        failed[run.name] = str(error)
                        continue
                    self.results.append(result)
                    append_result(self.path, result)
                    said = f"{result.val_bpb:.4f} bits per byte after {result.tokens:,} tokens and {hms(result.seconds)}"
                    say(f"{number}/{len(left)} {run.name}: {said}")
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return failed

    def done(self, run: Run, equal: str) -> Result | None:
        """What a run has come to; None where it is not done. Raises UserError where one of its name was asked for otherwise."""
        for each in self.results:
            if (each.change, each.depth, each.seed, each.equal) == (run.change, run.depth, run.seed, equal):
                for key in sorted(each.settings.keys() | run.settings.keys()):
                    if each.settings.get(key) != run.settings.get(key) and not (equal == "time" and key == "num_iterations"):
                        raise UserError(
                            f"{run.name} is done already, with {key} = {each.settings.get(key)} and not {run.settings.get(key)}: call what "
                            f"has changed otherwise, or remove {self.path}"
                        )
                return each
        return None

    def in_the_baselines_time(self, run: Run) -> Run:
        """The run with as many steps as take the baseline's time."""
        ours = [each for each in self.results if (each.change, each.depth, each.equal) == (run.change, run.depth, "tokens")]
        plain = [each for each in self.results if (each.change, each.depth) == (BASELINE, run.depth)]
        step_s = statistics.median(each.seconds / each.steps for each in ours)
        steps = round(statistics.median(each.seconds for each in plain) / step_s)
        return replace(run, settings={**run.settings, "num_iterations": max(1, steps)})

    def _train(self, run: Run, equal: str, device: str) -> Result:
        tag = f"ablate-{self.grid.name}-{run.name}{'-time' if equal == 'time' else ''}"
        steps = run.steps(self.vocab_size)
        flags: dict[str, Any] = {
            **QUIET,
            "eval_every": max(1, steps // EVALUATIONS),
            **run.settings,
            "depth": run.depth,
            "seed": run.seed,
            "model_tag": tag,
        }
        command = [sys.executable, "-m", "scripts.base_train", *(_flag(name, value) for name, value in flags.items())]
        threads = max(1, (os.cpu_count() or 1) // len(self.devices))
        environment = {**os.environ, DIES_WITH: str(os.getpid())}
        if device:
            environment["CUDA_VISIBLE_DEVICES"] = device
        else:
            environment["OMP_NUM_THREADS"] = str(threads)
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["nothing was said"])[-1].removeprefix("error: ")
            raise FailedError(f"it ended with {done.returncode}: {said}")
        directory = run_dir(tag)
        metrics = read_metrics(directory / "base/metrics.jsonl")
        result = self._result(run, equal, metrics)
        kept = self.path.parent / f"{run.name}{'-time' if equal == 'time' else ''}.jsonl"
        kept.write_bytes((directory / "base/metrics.jsonl").read_bytes())
        remove(directory)
        return result

    def _result(self, run: Run, equal: str, metrics: list[dict[str, Any]]) -> Result:
        steps = [row for row in metrics if "tok_per_sec" in row]
        usual_s = statistics.median(_seconds(row, before) for before, row in zip([None, *steps], steps, strict=False))
        at: dict[int, tuple[int, float]] = {}
        seconds, before = 0.0, None
        for row in steps:
            # The first step compiles; what it takes is the same in a run of any length.
            seconds += _seconds(row, before) if before else usual_s
            at[row["step"]] = row["tokens"], seconds
            before = row
        curve = [(*at[row["step"]], row["val_bpb"]) for row in metrics if "val_bpb" in row and row["step"] in at]
        if not curve or curve[-1][0] != steps[-1]["tokens"]:
            raise FailedError("it was not evaluated at its end: eval_every must not be -1")
        plain = self.done(replace(run, change=BASELINE, settings=self.grid.baseline), "tokens") if run.change != BASELINE else None
        target = plain.val_bpb if plain else curve[-1][2]
        tokens, seconds, bpb = curve[-1]
        return Result(
            run.change, run.depth, run.seed, equal, run.settings, len(steps), tokens, seconds, bpb, curve, tokens_at(curve, target), _made()
        )


def _made() -> dict[str, str]:
    import torch

    from nanochat.train.step_plan import gpu_of

    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    return {"date": datetime.now(UTC).date().isoformat(), "machine": machine_of(gpu_of(device)), "torch": torch_version()}


def _seconds(row: dict[str, Any], before: dict[str, Any] | None) -> float:
    return float((row["tokens"] - (before["tokens"] if before else 0)) / row["tok_per_sec"])


def _flag(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    return f"--{name}={value}"
