"""The tables of the documents, made by the planner: `python -m scripts.plan --write_docs`."""

from collections.abc import Callable
from pathlib import Path

from nanochat.common.console import say
from nanochat.common.files import atomic_path
from nanochat.common.markdown import table, with_parts
from nanochat.plan.answer import Planner, node_of
from nanochat.plan.loss import forecast, read_fits, read_runs
from nanochat.plan.rates import HELD_NORM_RATES
from nanochat.plan.settings import PlanSettings
from nanochat.plan.sizes import model_dim, parameters
from nanochat.plan.tables import amount, count

ROOT = Path(__file__).parents[2]
DOCUMENTS = ("DESIGN_3B_7B.md",)
NODE = "8xH100-80GB"
BUDGETS = ((20, 8), (20, 20), (38, 8), (38, 20), (52, 8), (52, 20))
"""Depths, and tokens a parameter."""


def budgets() -> str:
    """What a run of so many tokens a parameter takes and can expect."""
    rows = []
    for depth, ratio in BUDGETS:
        for precision in ("bf16", "fp8"):
            settings = PlanSettings(depth=depth, gpus=NODE, precision=precision, target_param_data_ratio=ratio, data="fineweb-edu")
            answer = Planner(settings, node_of(settings)).answer()
            run, loss = answer.run, answer.loss
            usd = amount(run.usd) if run.usd is not None else "?"
            expected = f"{loss.bpb:.3f} ({loss.low:.3f} to {loss.high:.3f})"
            beyond = "yes" if loss.is_extrapolation else "no"
            rows.append((str(depth), str(ratio), count(run.tokens), precision, amount(run.hours), usd, expected, beyond))
    header = ("depth", "tokens a parameter", "tokens", "precision", f"hours on {NODE}", "$", "validation bits per byte", "extrapolated")
    return table(header, rows)


def rates() -> str:
    """The learning rates that base training makes of them with --scale_lr."""
    rows = []
    for depth, ratio in ((12, 8), *BUDGETS):
        settings = PlanSettings(depth=depth, gpus=NODE, precision="bf16", target_param_data_ratio=ratio, data="fineweb-edu")
        run = Planner(settings, node_of(settings)).answer().run
        peak = HELD_NORM_RATES.by_width_and_steps(model_dim(depth), run.steps)
        cells = (depth, ratio, model_dim(depth), f"{run.steps:,}")
        rows.append((*map(str, cells), f"{peak.matrices:.4f}", f"{peak.embedding:.3f}", f"{peak.head:.4f}"))
    return table(("depth", "tokens a parameter", "width", "steps", "matrices", "embedding", "head"), rows)


def loss_fit() -> str:
    """The fit, and how far the runs are from it."""
    fit = read_fits()["fineweb-edu"]
    e, a, alpha, b, beta = fit.best
    formula = f"{e:.3f} + {a:.3f} · (N / 10⁸)^−{alpha:.3f} + {b:.3f} · (D / 10⁹)^−{beta:.3f}"
    rows = []
    for run in read_runs():
        fitted = forecast(fit, parameters(run.depth, run.vocab_size), run.tokens).bpb
        rows.append((run.source, str(run.depth), count(run.tokens), f"{run.val_bpb:.4f}", f"{fitted / run.val_bpb - 1:+.2%}"))
    runs = table(("run", "depth", "tokens", "bits per byte", "the fit's difference"), rows)
    return f"bits per byte = {formula}, the runs around it ± {fit.spread:.2%}\n\n{runs}"


PARTS: dict[str, Callable[[], str]] = {"budgets": budgets, "loss-fit": loss_fit, "rates": rates}


def made(document: str) -> str:
    """The text of a document with its tables as the planner makes them now. Raises KeyError for a table that does not exist."""
    return with_parts((ROOT / document).read_text(encoding="utf-8"), lambda name: PARTS[name]())


def write_documents() -> None:
    """Make the tables of all documents anew."""
    for document in DOCUMENTS:
        with atomic_path(ROOT / document) as aside:
            aside.write_text(made(document), encoding="utf-8")
        say(f"written: {document}")
