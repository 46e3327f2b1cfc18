"""The tables of the documents, made by the planner: `python -m scripts.plan --write_docs`."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from nanochat.common.console import say
from nanochat.common.files import atomic_path
from nanochat.common.markdown import with_parts
from nanochat.plan import document_tables as tables
from nanochat.plan.guide_table import guide

ROOT = Path(__file__).parents[2]
DOCUMENTS = ("README.md", "DESIGN_3B_7B.md")

PARTS: dict[str, Callable[[], str]] = {
    "batches": tables.batches,
    "budgets": tables.budgets,
    "disk": tables.disk,
    "fewer-gpus": tables.fewer_gpus,
    "guide": guide,
    "kinds": tables.kinds,
    "ladder": tables.ladder,
    "loss-fit": tables.loss_fit,
    "measured": tables.measured,
    "memory": tables.memory,
    "nodes": tables.nodes,
    "rates": tables.rates,
    "recompute": tables.recompute,
    "rehearsal": tables.rehearsal,
    "sizes": tables.sizes,
    "step": tables.step,
}
"""What makes each table, by its name in `<!-- made: NAME -->`."""


def made(document: str) -> str:
    """The text of a document with its tables as the planner makes them now. Raises KeyError for a table that does not exist."""
    with _as_anywhere():
        return with_parts((ROOT / document).read_text(encoding="utf-8"), lambda name: PARTS[name]())


def write_documents() -> None:
    """Make the tables of all documents anew."""
    for document in DOCUMENTS:
        text = made(document)
        with atomic_path(ROOT / document) as aside:
            aside.write_text(text, encoding="utf-8")
        say(f"written: {document}")


@contextmanager
def _as_anywhere() -> Iterator[None]:
    """Without what was measured on this very machine: a document is the same wherever it is made."""
    kept = os.environ.get("NANOCHAT_BASE_DIR")
    os.environ["NANOCHAT_BASE_DIR"] = os.path.join(os.sep, "nowhere")
    try:
        yield
    finally:
        if kept is None:
            del os.environ["NANOCHAT_BASE_DIR"]
        else:
            os.environ["NANOCHAT_BASE_DIR"] = kept
