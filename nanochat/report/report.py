"""report.md: written into the run's directory and into the current one."""

import datetime
import errno
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import quote

from nanochat.common.console import say, warn
from nanochat.common.files import atomic_path
from nanochat.common.markdown import block, cell, table
from nanochat.common.secrets import hide
from nanochat.report import machine, sections
from nanochat.report.plots import draw_all
from nanochat.report.run_files import StageFiles, find_run, read_stage
from nanochat.train.run_directory import STAGES

REPORT_FILE, PICTURES = "report.md", "report"


@dataclass(frozen=True)
class ReportSettings:
    """Write report.md of a run, whole or half, into its directory and into the current one."""

    model_tag: str = ""
    """Run to report on, by its name, as in d38. Default: the newest."""


def report(settings: ReportSettings) -> None:
    """Write the report and its pictures. Raises UserError where there is no run."""
    run, tag = find_run(settings.model_tag)
    stages = [read_stage(run, name) for name in STAGES]
    pictures = draw_all(stages, run / PICTURES)
    for directory in (run, Path.cwd()):
        where = PICTURES if directory == run else str(run / PICTURES)
        try:
            with atomic_path(directory / REPORT_FILE) as aside:
                aside.write_text(
                    text_of(tag, run, stages, [(f"{where}/{name}", caption) for name, caption in pictures]),
                    encoding="utf-8",
                    errors="replace",
                )
            say(f"wrote {directory / REPORT_FILE}")
        except OSError as error:
            if directory == run or error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            warn(f"the current directory cannot be written; the report is {run / REPORT_FILE}")


def _made(make: Callable[[], str]) -> str:
    """A section, or that a file it is made from does not hold what it should."""
    try:
        return make()
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return f"This could not be made: a file of the run is damaged ({cell(repr(error))})."


def text_of(tag: str, run: Path, stages: list[StageFiles], pictures: list[tuple[str, str]]) -> str:
    """The report in Markdown; pictures: their paths and captions."""
    there = [stage for stage in stages if stage.began or stage.name != "dpo"]
    began = [stage for stage in stages if stage.began]
    parts = [
        f"# Report: {cell(tag)}",
        f"{datetime.datetime.now().astimezone():%Y-%m-%d %H:%M %Z}, of {cell(run)}",
        _made(lambda: sections.summary(there)),
    ]
    if lacking := _made(lambda: sections.missing(stages)):
        parts += ["## What is missing", lacking]
    parts += ["## Machine", table(["", ""], machine.facts())]
    if tuned := _made(lambda: sections.tuning(stages[0])):
        parts += ["## How the machine was tuned", tuned]
    parts += ["## Scores of the chat models", _made(lambda: sections.chat_scores(stages))]
    parts += ["## CORE", _made(lambda: sections.core_scores(stages[0]))]
    for stage in began:
        parts += [f"## Training: {stage.name}", _made(partial(sections.training, stage))]
    parts += ["## Predicted against actual", _made(lambda: sections.predicted(began))]
    if pictures:
        parts.append("## Plots")
        parts += [f"![{caption}]({quote(os.fsencode(path))})" for path, caption in pictures]
    if stages[0].samples:
        parts += ["## What the base model writes", _made(lambda: sections.samples(stages[0]))]
    spoken = [stage for stage in stages if stage.transcript]
    if spoken:
        parts += [f"## A conversation with the {spoken[-1].name} model", _made(lambda: sections.transcript(spoken[-1]))]
    for stage in began:
        settings = json.dumps({"identity": stage.identity, "settings": stage.settings}, indent=1, ensure_ascii=False)
        parts += [f"<details><summary>Settings: {stage.name}</summary>", block(settings), "</details>"]
    return hide("\n\n".join(parts) + "\n")
