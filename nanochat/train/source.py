"""The model that a stage starts from: which one it is, what its run was asked for, and its weights."""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nanochat.common.errors import UserError
from nanochat.common.files import read_json
from nanochat.common.paths import base_dir
from nanochat.model.directory import each_weight
from nanochat.model.find import find_model
from nanochat.model.gpt import GPT
from nanochat.parallel.sharding import rows_held

STAGES = ("base", "mid", "sft", "rl", "dpo")


@dataclass(frozen=True)
class SourceModel:
    """A finished model that training goes on from."""

    directory: Path
    """The model directory."""
    tag: str
    """The run that it belongs to; a directory from elsewhere gives its own name."""
    settings: dict[str, Any]
    """What its stage was asked for; empty where nothing is known."""
    identity: dict[str, Any]
    """What its stage was."""

    @property
    def name(self) -> str:
        """Stage, or path, as one speaks of it."""
        return self.directory.parent.name if self.directory.parent.parent.parent == base_dir() / "runs" else str(self.directory)

    def setting(self, name: str, default: Any) -> Any:
        """A setting of its run, for a stage that is not told otherwise."""
        return self.settings.get(name, default)


def find_source(source: str, model_tag: str, usual: tuple[str, ...]) -> SourceModel:
    """The model that `--source` names: a stage of the run `model_tag` (or of the newest run), or a model directory by its path.

    Without `source` the first of the `usual` stages that has a finished model. Raises UserError, saying what is there, when there is none.
    """
    if source and source not in STAGES:
        directory = Path(source).expanduser().absolute()
        if not (directory / "config.json").is_file():
            raise UserError(f"--source={source}: neither a stage ({', '.join(STAGES)}) nor a model directory (it has no config.json)")
    else:
        directory = _newest((source,) if source else usual, model_tag)
    in_runs = directory.parent.parent.parent == base_dir() / "runs"
    tag = model_tag or (directory.parent.parent.name if in_runs else directory.name)
    kept: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError, TypeError):
        kept = dict(read_json(directory.parent / "config.json")) if in_runs else {}
    return SourceModel(directory, tag, dict(kept.get("settings") or {}), dict(kept.get("identity") or {}))


def _newest(stages: tuple[str, ...], model_tag: str) -> Path:
    for stage in stages[:-1]:
        with contextlib.suppress(UserError):
            return find_model((stage,), model_tag)
    return find_model((stages[-1],), model_tag)


@torch.no_grad()
def load_weights(model: GPT, directory: Path) -> None:
    """Give a model in training, sharded or not, the weights of a model directory; each process reads the rows that it holds.

    Raises UserError when one is missing, damaged or of another shape.
    """
    parameters = dict(model.named_parameters())
    for name, read in each_weight(directory, {name: tuple(p.shape) for name, p in parameters.items()}):
        held, first = rows_held(parameters[name])
        held.copy_(read(first, first + held.size(0)))
