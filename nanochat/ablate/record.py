"""The results of grids that a repository keeps: a file for each in results/, and their tables in README.md beside the grids."""

import json
from dataclasses import asdict
from pathlib import Path

from nanochat.ablate.results import HEADER, Result, read_results, rows
from nanochat.common.errors import UserError
from nanochat.common.files import atomic_path
from nanochat.common.markdown import mark, table, with_parts


def check_place(grid: Path) -> None:
    """Raises UserError where the README.md beside a grid is about something else."""
    readme = grid.parent / "README.md"
    if readme.exists() and "<!-- made: " not in readme.read_text(encoding="utf-8"):
        raise UserError(f"--record: {readme} is about something else: put {grid.name} into a directory of its own")


def record(grid: Path, results: list[Result]) -> Path:
    """Keep the results of a grid's file beside it, and its table; returns the README.md."""
    kept = grid.parent / "results" / f"{grid.stem}.jsonl"
    kept.parent.mkdir(exist_ok=True)
    with atomic_path(kept) as aside:
        aside.write_text("".join(json.dumps(asdict(each)) + "\n" for each in results), encoding="utf-8")
    readme = grid.parent / "README.md"
    text = readme.read_text(encoding="utf-8") if readme.exists() else ""
    if f"<!-- made: {grid.stem} -->" not in text:
        text += f"{chr(10) if text else ''}## {grid.stem}\n\n{mark(grid.stem)}"
    with atomic_path(readme) as aside:
        aside.write_text(with_tables(text, grid.parent), encoding="utf-8")
    return readme


def with_tables(text: str, directory: Path) -> str:
    """A README's text with the tables that the results in `directory` make."""

    def part(name: str) -> str:
        results = read_results(directory / "results" / f"{name}.jsonl")
        return f"{_made(results)}\n\n{table(HEADER, rows(results))}"

    return with_parts(text, part)


def _made(results: list[Result]) -> str:
    machines = sorted({f"{each.made['machine']}, torch {each.made['torch']}" for each in results if each.made})
    dates = sorted({each.made["date"] for each in results if each.made})
    when = " to ".join(dict.fromkeys((dates[0], dates[-1]))) if dates else "an unknown day"
    tokens = sorted({each.tokens for each in results if each.change == "baseline"})
    return f"{len(results)} runs on {' and '.join(machines) or 'an unknown machine'}, {when}; the baseline's tokens: " + ", ".join(
        f"{each:,}" for each in tokens
    )
