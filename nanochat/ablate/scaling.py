"""Fits validation loss against parameters and tokens, over runs that are done."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nanochat.ablate.grid import BASELINE
from nanochat.ablate.results import Result, read_results
from nanochat.common.console import say
from nanochat.common.errors import UserError
from nanochat.plan.document_tables import BUDGETS
from nanochat.plan.loss import FITS, PARAMETERS_UNIT, RUNS, TOKENS_UNIT, Fit, LossRun, forecast, read_runs
from nanochat.plan.settings import DEFAULT_RATIO
from nanochat.plan.sizes import parameters
from nanochat.plan.tables import Table, count, show

COEFFICIENTS = 5
VOCAB_SIZE = 65_536
DRAWS = 200

Values = NDArray[np.float64]


def runs_of(path: Path) -> list[LossRun]:
    """The baseline's runs in a results.jsonl of scripts.ablate. Raises UserError where there are none."""
    found = [_as_run(each, path) for each in read_results(path) if (each.change, each.equal) == (BASELINE, "tokens")]
    if not found:
        raise UserError(f"{path} holds no run of a baseline; it is a results.jsonl of scripts.ablate that is wanted")
    return found


def _as_run(result: Result, path: Path) -> LossRun:
    data, tokenizer = result.settings.get("data"), result.settings.get("tokenizer", "")
    if not data or not tokenizer.rpartition("-")[2].isdigit():
        raise UserError(f"{path}: its baseline does not say data and tokenizer, as in data = 'python' and tokenizer = 'python-1024'")
    return LossRun(data, int(tokenizer.rpartition("-")[2]), result.depth, result.tokens, result.val_bpb, path.name)


def fit_loss(runs: Sequence[LossRun], seed: int = 0) -> Fit:
    """The fit to runs on one text, by least squares of the logarithm, and draws for its uncertainty.

    Half of the draws are of the same form; the others hold the exponents equal and the optimum where it was published, for runs that
    are trained alike at every size do not tell one exponent from the other.

    Raises UserError where the runs are too few or too alike for five coefficients.
    """
    different = {(run.depth, run.vocab_size, run.tokens) for run in runs}
    if len(different) <= COEFFICIENTS or len({run.depth for run in runs}) < 3 or len({run.tokens for run in runs}) < 3:
        raise UserError(
            f"{len(different)} different runs on {runs[0].data}, at {len({run.depth for run in runs})} depths: "
            f"a fit wants {COEFFICIENTS + 1} or more, at three depths and three numbers of tokens at least"
        )
    sizes = np.array([parameters(run.depth, run.vocab_size) for run in runs], dtype=np.float64)
    tokens = np.array([run.tokens for run in runs], dtype=np.float64)
    measured = np.log([run.val_bpb for run in runs])
    # Runs that differ by their seed alone weigh together as one.
    alike = np.array([sum((other.depth, other.tokens) == (run.depth, run.tokens) for other in runs) for run in runs])
    problem = Problem(sizes, tokens, measured, alike**-0.5, len(different))
    draws, spreads, bests = [], [], []
    for form in (free, at_published_optimum):
        best, spread = problem.solve(form)
        exact = problem.logarithm(form(best))
        generator = np.random.default_rng(seed)
        for _ in range(DRAWS // 2):
            drawn = replace(problem, measured=exact + generator.normal(0, spread, len(runs)) / problem.weights)
            draws.append(_rounded(form(drawn.solve(form, best)[0])))
        bests.append(_rounded(form(best)))
        spreads.append(spread)
    ends = [(int(values.min()), int(values.max())) for values in (sizes, tokens)]
    return Fit(runs[0].data, len(runs), bests[0], draws, spreads[0], *ends)


def free(p: Values) -> Values:
    """E, A, α, B, β from the logarithms of all five."""
    return np.asarray(np.exp(p))


def at_published_optimum(p: Values) -> Values:
    """The same from those of E, A and α, with β = α and parameters and tokens in balance at the published optimum, at every size."""
    e, a, alpha = np.exp(p[:3])
    return np.array([e, a, alpha, a * (TOKENS_UNIT / PARAMETERS_UNIT / DEFAULT_RATIO) ** -alpha, alpha])


@dataclass(frozen=True)
class Problem:
    """Runs, and the coefficients that are sought."""

    sizes: Values
    """(runs,): parameters."""
    tokens: Values
    """(runs,)"""
    measured: Values
    """(runs,): logarithms of bits per byte."""
    weights: Values
    """(runs,)"""
    different: int
    """Runs that do not differ by their seed alone."""

    def logarithm(self, coefficients: Values) -> Values:
        """(runs,): what the coefficients expect."""
        e, a, alpha, b, beta = coefficients
        return np.asarray(np.log(e + a * (self.sizes / PARAMETERS_UNIT) ** -alpha + b * (self.tokens / TOKENS_UNIT) ** -beta))

    def solve(self, form: Callable[[Values], Values], start: Values | None = None) -> tuple[Values, float]:
        """What `form` takes for the least squares, and the spread of the runs around that; from `start`, or from many places."""
        from scipy.optimize import least_squares

        def differences(p: Values) -> Values:
            return self.weights * (self.logarithm(form(p)) - self.measured)

        starts = STARTS if start is None else [start]
        count = 3 if form is at_published_optimum else 5
        found = min((least_squares(differences, each[:count], bounds=(-12, 3)) for each in starts), key=lambda each: each.cost)
        return found.x, float(np.sqrt(2 * found.cost / (self.different - count)))


STARTS = [
    np.log([irreducible, 0.2, alpha, 0.2, beta]) for irreducible, alpha, beta in product((0.3, 0.6, 1.0), (0.2, 0.4, 0.7), (0.2, 0.4, 0.7))
]


def _rounded(coefficients: Values) -> tuple[float, ...]:
    return tuple(float(f"{value:.6g}") for value in coefficients)


def optimal_ratio(fit: Fit, depth: int, vocab_size: int) -> list[float]:
    """Tokens a parameter at which this depth is the best use of its compute, by each draw of the free form, ascending.

    At the best, a small part more compute lowers the loss as much by parameters as by tokens: α · A · N^−α = β · B · D^−β.
    """
    n = parameters(depth, vocab_size)
    found = []
    for _, a, alpha, b, beta in fit.draws[: len(fit.draws) // 2]:
        tokens = TOKENS_UNIT * (beta * b / (alpha * a * (n / PARAMETERS_UNIT) ** -alpha)) ** (1 / beta)
        found.append(tokens / n)
    return sorted(found)


def scaling(files: list[str], record: bool) -> None:
    """Fit every text that has runs enough and print what follows; with `record` keep runs and fits for the planner."""
    runs = list(dict.fromkeys([*read_runs(), *(run for file in files for run in runs_of(Path(file)))]))
    fits = []
    for data in dict.fromkeys(run.data for run in runs):
        fit = fit_loss([run for run in runs if run.data == data])
        fits.append(fit)
        show([_fit_table(fit), _runs_table(fit, [run for run in runs if run.data == data]), _forecast_table(fit)])
    if record:
        RUNS.write_text("[\n" + ",\n".join(f"  {json.dumps(asdict(run))}" for run in runs) + "\n]\n", encoding="utf-8")
        FITS.write_text(json.dumps([asdict(fit) for fit in fits]) + "\n", encoding="utf-8")
        say(f"kept in {FITS}")


def _fit_table(fit: Fit) -> Table:
    drawn = np.quantile(np.array(fit.draws), (0.1, 0.9), axis=0)
    names = ("E", "A", "alpha", "B", "beta")
    rows = [
        (name, f"{best:.3f} ({low:.3f} to {high:.3f})") for name, best, low, high in zip(names, fit.best, drawn[0], drawn[1], strict=True)
    ]
    rows.append(("runs around it", f"± {fit.spread:.2%}"))
    for depth in dict.fromkeys(depth for depth, _ in BUDGETS):
        low, middle, high = np.quantile(optimal_ratio(fit, depth, VOCAB_SIZE), (0.1, 0.5, 0.9))
        rows.append((f"tokens a parameter at which depth {depth} is best", f"{middle:.3g} ({low:.3g} to {high:.3g})"))
    return Table(f"{fit.data}: bits per byte = E + A · (N / 10⁸)^-alpha + B · (D / 10⁹)^-beta, {fit.runs} runs", rows, last_is_words=True)


def _runs_table(fit: Fit, runs: list[LossRun]) -> Table:
    rows = []
    for run in runs:
        fitted = forecast(fit, parameters(run.depth, run.vocab_size), run.tokens).bpb
        rows.append((str(run.depth), count(run.tokens), f"{run.val_bpb:.4f}", f"{fitted / run.val_bpb - 1:+.2%}"))
    return Table("the runs", rows, ("depth", "tokens", "bits per byte", "fit"))


def _forecast_table(fit: Fit) -> Table:
    rows = []
    for depth, ratio in BUDGETS:
        n = parameters(depth, VOCAB_SIZE)
        made = forecast(fit, n, ratio * n)
        beyond = "yes" if made.is_extrapolation else "no"
        rows.append((str(depth), str(ratio), f"{made.bpb:.3f}", f"{made.low:.3f} to {made.high:.3f}", beyond))
    header = ("depth", "tokens a parameter", "bits per byte", "four in five", "extrapolated")
    return Table(f"forecasts at a vocabulary of {VOCAB_SIZE:,}", rows, header)
