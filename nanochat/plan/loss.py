"""What loss a run can expect: validation bits per byte as a function of parameters and tokens, fitted to runs that are done.

L(N, D) = E + A · (N / 10⁸)^−α + B · (D / 10⁹)^−β with N parameters, all of them, and D tokens (Hoffmann et al., arXiv 2203.15556).
The fits are made by `python -m scripts.scaling --record` from loss_runs.json; a text has one of its own, since bits per byte of
different texts are not to be compared.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FITS = Path(__file__).with_name("loss_fits.json")
RUNS = Path(__file__).with_name("loss_runs.json")
PARAMETERS_UNIT, TOKENS_UNIT = 1e8, 1e9
WITHIN = 0.8
"""Share of what the fit allows that lies between `low` and `high`."""


@dataclass(frozen=True)
class LossRun:
    """A run with the plain settings that is done."""

    data: str
    """Text that it was trained on, and held-out tokens of it measured by."""
    vocab_size: int
    """Entries of the vocabulary."""
    depth: int
    """Layers."""
    tokens: int
    """Tokens that it was trained on."""
    val_bpb: float
    """Final validation bits per byte."""
    source: str
    """Where that is said."""


@dataclass(frozen=True)
class Fit:
    """A fit to the runs on one text."""

    data: str
    """The text."""
    runs: int
    """Runs that it was fitted to."""
    best: Sequence[float]
    """The likeliest coefficients: E, A, α, B, β."""
    draws: Sequence[Sequence[float]]
    """Others that the runs allow, of two forms, half of each."""
    spread: float
    """Standard deviation of the runs around the best, as a share."""
    parameters: Sequence[int]
    """Of the smallest run and of the largest."""
    tokens: Sequence[int]
    """Of the shortest run and of the longest."""


@dataclass(frozen=True)
class Forecast:
    """Validation bits per byte that a run can expect."""

    bpb: float
    """By the likeliest coefficients."""
    low: float
    """One in ten is below."""
    high: float
    """One in ten is above."""
    data: str
    """Text that these bits per byte are of."""
    is_extrapolation: bool
    """Whether the run is larger or longer, smaller or shorter than all that the fit is made of."""
    basis: str
    """What it rests on, in words."""


def loss_at(coefficients: Sequence[float], parameters: float, tokens: float) -> float:
    """Bits per byte of a model of that many parameters after that many tokens."""
    e, a, alpha, b, beta = coefficients
    return e + a * (parameters / PARAMETERS_UNIT) ** -alpha + b * (tokens / TOKENS_UNIT) ** -beta


@cache
def read_fits() -> dict[str, Fit]:
    """The fits that are kept, by text."""
    return {each["data"]: Fit(**each) for each in json.loads(FITS.read_text(encoding="utf-8"))}


def read_runs() -> list[LossRun]:
    """The runs that are kept."""
    return [LossRun(**each) for each in json.loads(RUNS.read_text(encoding="utf-8"))]


def forecast(fit: Fit, parameters: int, tokens: int) -> Forecast:
    """What a run of that many parameters and tokens can expect. Raises ValueError where either is not positive."""
    if parameters <= 0 or tokens <= 0:
        raise ValueError(f"{parameters} parameters and {tokens} tokens: both must be positive")
    drawn = sorted(loss_at(each, parameters, tokens) for each in fit.draws)
    margin = (1 - WITHIN) / 2
    low, high = (drawn[min(len(drawn) - 1, math.floor(share * len(drawn)))] for share in (margin, 1 - margin))
    beyond = not (fit.parameters[0] <= parameters <= fit.parameters[1] and fit.tokens[0] <= tokens <= fit.tokens[1])
    largest = f"{fit.parameters[1] / 1e9:.1f} B parameters and {fit.tokens[1] / 1e9:.1f} B tokens"
    basis = f"{'an extrapolation from' if beyond else 'within'} {fit.runs} runs with the plain settings on {fit.data}, up to {largest}"
    return Forecast(loss_at(fit.best, parameters, tokens), low, high, fit.data, beyond, basis)


def expected(data: str, parameters: int, tokens: int) -> Forecast:
    """The forecast on a text; on FineWeb-Edu, and saying so, where none of that text is kept."""
    fits = read_fits()
    return forecast(fits.get(data, fits["fineweb-edu"]), parameters, tokens)
