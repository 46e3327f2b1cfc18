"""`scripts.dataset`: gets the text of a source, so that it lies in shards on disk."""

import dataclasses
import os

from nanochat.common.console import say
from nanochat.common.errors import UserError
from nanochat.common.locks import locked
from nanochat.common.paths import data_dir
from nanochat.data import hub_text, path_text, python_text
from nanochat.data.sources import PYTHON, Source, source_of
from nanochat.data.text_shards import count_rows, text_shards

HUB_DOWNLOADS = 8


@dataclasses.dataclass(frozen=True)
class DatasetSettings:
    """Get text: make it from what is on this machine, or download it. What is there already is kept."""

    data: str = "climbmix"
    """Text to get: python (this machine's Python installation), climbmix, fineweb-edu (both from the hub), or path:DIR (your own files)."""
    num_shards: int = -1
    """Training shards to have, 100 MB each from the hub, beside one for validation; -1 for 5 of python, 8 from the hub, all of path:DIR."""
    num_workers: int = -1
    """Downloads at the same time, or processes that read Python files; -1 for 8 downloads, or a process a core."""


def make_text(settings: DatasetSettings) -> None:
    """Have the text on disk that the settings ask for, and say what is there. Raises UserError when it cannot be had."""
    source = source_of(settings.data)
    num_shards = _num_shards(source, settings.num_shards)
    if settings.num_workers != -1 and settings.num_workers < 1:
        raise UserError(f"--num_workers must be at least 1, or -1 for the default; got {settings.num_workers}")
    if source.repo and source.licence:
        say(f"{source.name}: {source.repo} on the hub, licence {source.licence}{_licence_note(source.licence)}")
    if _is_there(source, num_shards):
        say(f"{source.name}: already there")
    else:
        _make_alone(source, num_shards, settings.num_workers)
    _say_what_is_there(source)


def _num_shards(source: Source, asked: int) -> int:
    """Train shards to have; -1 for all. Raises UserError for a number that the source cannot give."""
    if asked == -1:
        return source.default_shards
    if asked < 1:
        raise UserError(f"--num_shards must be at least 1, or -1 for the default; got {asked}")
    if source.max_shards != -1 and asked > source.max_shards:
        raise UserError(f"--num_shards {asked}: {source.name} has {source.max_shards:,} train shards; ask for at most that many")
    return asked


def _licence_note(licence: str) -> str:
    return " (not for commercial use, and models trained on it should say so)" if "NC" in licence else ""


def _is_there(source: Source, num_shards: int) -> bool:
    if source.directory is not None:
        return path_text.is_there(source, num_shards)
    return python_text.is_there(num_shards) if source == PYTHON else hub_text.is_there(source, num_shards)


def _make_alone(source: Source, num_shards: int, num_workers: int) -> None:
    """Make or fetch the shards while no other process does so in the same directory."""
    directory = data_dir(source.name)
    directory.parent.mkdir(parents=True, exist_ok=True)
    lock = directory.with_name(f".{source.name}.lock")
    with locked(lock, waiting=f"{source.name}: another process is getting it; waiting for it to finish"):
        if _is_there(source, num_shards):
            say(f"{source.name}: already there")
        elif source.directory is not None:
            path_text.make(source, num_shards)
        elif source == PYTHON:
            python_text.make(source, num_shards, num_workers if num_workers > 0 else os.cpu_count() or 1)
        else:
            hub_text.get(source, num_shards, num_workers if num_workers > 0 else HUB_DOWNLOADS)


def _say_what_is_there(source: Source) -> None:
    shards = text_shards(source.name, source.data)
    paths = [*shards.train, shards.val]
    rows = sum(map(count_rows, paths))
    mb = sum(path.stat().st_size for path in paths) / 1e6
    say(f"{source.name}: {len(shards.train):,} train shards and 1 for validation, {rows:,} documents, {mb:,.1f} MB in {shards.val.parent}")
