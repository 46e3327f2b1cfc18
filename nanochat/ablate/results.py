"""What the runs of a grid have come to, and what may be said of it. Imports nothing heavy."""

import json
import math
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nanochat.ablate.grid import BASELINE

CHANCE = 0.05
"""How often a mean of differences of nothing may pass for one of something."""
KEPT_AT = 2
"""Depths at which a change has to win."""


@dataclass(frozen=True)
class Result:
    """A run that is done."""

    change: str
    depth: int
    seed: int
    equal: str
    """What it has in common with the baseline: `tokens`, or `time` where its steps were made as many as take the baseline's time."""
    settings: dict[str, Any]
    steps: int
    tokens: int
    seconds: float
    """In training steps, without evaluations."""
    val_bpb: float
    """At its end."""
    curve: list[tuple[int, float, float]]
    """Tokens, seconds and validation bits per byte at each evaluation."""
    tokens_to_baseline: float | None
    """At which it first had the final bits per byte of the baseline of its seed, between two evaluations on a line; None for never."""
    made: dict[str, str] = field(default_factory=dict)
    """Date, machine and torch of the run."""


def append_result(path: Path, result: Result) -> None:
    """One JSON line more, whole or not at all where the file ends in the middle of one."""
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write((json.dumps(asdict(result)) + "\n").encode())


def read_results(path: Path) -> list[Result]:
    """The results in a file; a line that is none, as the last of a killed process, is left out."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            found.append(Result(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return found


def tokens_at(curve: Iterable[tuple[int, float, float]], bpb: float) -> float | None:
    """Tokens at which a curve first comes down to a value, on a line between two of its points; None where it never does."""
    before: tuple[int, float] | None = None
    for tokens, _, value in curve:
        if value <= bpb:
            if before is None or before[1] == value:
                return float(tokens)
            return before[0] + (tokens - before[0]) * (before[1] - bpb) / (before[1] - value)
        before = tokens, value
    return None


@dataclass(frozen=True)
class Comparison:
    """A change against the baseline at one depth, seed by seed."""

    change: str
    depth: int
    equal: str
    bpb: list[float]
    """Final ones, by seed."""
    differences: list[float]
    """From the baseline's of the same seed."""
    shares: list[float]
    """Tokens to the baseline's final value, as shares of the baseline's tokens; infinite for never."""
    slower: float
    """Time of a step as a multiple of the baseline's."""

    @property
    def mean(self) -> float:
        """Mean difference."""
        return statistics.fmean(self.differences)

    @property
    def uncertainty(self) -> float:
        """How far from zero a mean of so many differences comes by chance once in twenty; infinite for one alone."""
        count = len(self.differences)
        if count < 2:
            return math.inf
        from scipy.special import stdtrit  # Student's t

        return float(stdtrit(count - 1, 1 - CHANCE)) * statistics.stdev(self.differences) / math.sqrt(count)

    @property
    def wins(self) -> bool:
        """Whether it is better, by more than what the seeds differ."""
        return self.mean < -self.uncertainty


def compare(results: list[Result]) -> list[Comparison]:
    """Every change at every depth, with those seeds that the baseline has too."""
    found: dict[tuple[str, int, str], dict[int, Result]] = {}
    for result in results:
        found.setdefault((result.change, result.depth, result.equal), {})[result.seed] = result
    comparisons = []
    for (change, depth, equal), runs in found.items():
        plain = found.get((BASELINE, depth, "tokens"), {})
        seeds = sorted(runs.keys() & plain.keys())
        if not seeds:
            continue
        per_step = statistics.median(runs[seed].seconds / runs[seed].tokens for seed in seeds)
        comparisons.append(
            Comparison(
                change,
                depth,
                equal,
                [runs[seed].val_bpb for seed in seeds],
                [runs[seed].val_bpb - plain[seed].val_bpb for seed in seeds],
                [_or_inf(runs[seed].tokens_to_baseline) / plain[seed].tokens for seed in seeds],
                per_step / statistics.median(plain[seed].seconds / plain[seed].tokens for seed in seeds),
            )
        )
    return comparisons


def _or_inf(value: float | None) -> float:
    return math.inf if value is None else value


def verdict(comparisons: list[Comparison], change: str) -> str:
    """What is to be done with a change: kept, where it wins at two depths or more, by several seeds each, and is behind at none."""
    ours = [each for each in comparisons if each.change == change and each.equal == "tokens"]
    several = [each for each in ours if len(each.differences) > 1]
    wins = sum(each.wins for each in several)
    if wins >= KEPT_AT and wins == len(several) and all(each.mean < 0 for each in ours):
        return "keep"
    if any(each.mean > each.uncertainty for each in ours):
        return "worse"
    if len(several) < len(ours):
        return "one seed says nothing"
    return f"wins at {wins} of {len(ours)} depths" if wins else "within the spread of seeds"


HEADER = ("change", "depth", "equal", "seeds", "bits per byte", "against the baseline", "tokens to its end", "time of a token", "so")


def rows(results: list[Result]) -> list[list[str]]:
    """A row for each change and depth, under HEADER; after ± the spread of the seeds, and what the mean difference may be off by."""
    comparisons = compare(results)
    made, last = [], ""
    for each in sorted(comparisons, key=lambda each: (each.change != BASELINE, each.change, each.depth, each.equal)):
        row = [each.change, str(each.depth), each.equal, str(len(each.bpb)), _with(statistics.fmean(each.bpb), _spread(each.bpb), ".4f")]
        if each.change == BASELINE:
            row += ["", "", "", ""]
        else:
            share = statistics.median(each.shares)
            row += [
                _with(each.mean, each.uncertainty, "+.4f"),
                f"{share:.0%}" if math.isfinite(share) else "never",
                f"{each.slower:.2f}",
                verdict(comparisons, each.change) if each.change != last else "",
            ]
        last = each.change
        made.append(row)
    return made


def _spread(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else math.inf


def _with(value: float, off: float, form: str) -> str:
    return f"{value:{form}} ± {off:.4f}" if math.isfinite(off) else f"{value:{form}}"
