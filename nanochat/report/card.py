"""The model card that goes out with a model: what its directory says, and what its run has measured."""

import re
from pathlib import Path

from nanochat.data.sources import NAMED
from nanochat.report import sections
from nanochat.report.run_files import read_stage
from nanochat.train.run_directory import STAGES

LICENCE_IDS = {"climbmix": "cc-by-nc-4.0"}
"""Of models whose text binds what may be done with them; elsewhere it is for those who trained the model to choose."""

LIMITS = """It is small beside the models that people know: it makes up facts, repeats the prejudices of the text it learned from, and
nobody has made it safe. Read what it writes before you rely on it, and run no code of its without looking at it."""


def released_card(directory: Path, licence: str = "") -> str:
    """The README.md of a model directory, with the licence in its head and, where it stands in a run, the run's figures.

    licence: an id that the hub knows, such as mit; by default the one that the base text asks for, where it does.
    """
    card = (
        (directory / "README.md").read_text(encoding="utf-8") if (directory / "README.md").is_file() else f"# {directory.resolve().name}\n"
    )
    stages = [read_stage(directory.resolve().parent.parent, name) for name in STAGES]
    began = [stage for stage in stages if stage.began]
    data = str(next((stage.identity["data"] for stage in began if stage.identity.get("data")), ""))
    licence = licence or LICENCE_IDS.get(data, "")
    card = re.split(r"^## (?:How it was trained|Scores|Limits)$", card, maxsplit=1, flags=re.MULTILINE)[0]  # of an earlier export
    body = [_with_licence(card, licence).rstrip()]
    if began:
        body += ["## How it was trained", sections.summary(began)]
        if data in NAMED and NAMED[data].licence:
            body.append(f"The base text, {data}, is under {NAMED[data].licence}.")
        body += ["## Scores", sections.chat_scores(stages), sections.core_scores(stages[0])]
    return "\n\n".join([*body, "## Limits", LIMITS]) + "\n"


def _with_licence(card: str, licence: str) -> str:
    head, rest = ("", card)
    if card.startswith("---\n") and "\n---\n" in card:
        head, rest = card.removeprefix("---\n").split("\n---\n", 1)
    lines = [line for line in head.splitlines() if not (licence and line.startswith("license:"))]
    lines += [f"license: {licence}"] if licence else []
    return "---\n" + "\n".join(lines or ["library_name: transformers"]) + "\n---\n" + rest
