"""The model that a stage starts from, a finished one or a checkpoint: which it is, what its run was asked for, its weights."""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nanochat.common.errors import UserError
from nanochat.common.files import read_json
from nanochat.common.paths import base_dir, named_path
from nanochat.model.checksums import verify_model
from nanochat.model.config import GPTConfig
from nanochat.model.directory import check_belongs, each_weight, load_config
from nanochat.model.find import find_model
from nanochat.model.gpt import GPT
from nanochat.parallel.sharding import rows_held
from nanochat.tokenizer.tokenizer import Tokenizer
from nanochat.train.checkpoint import load_checkpoint_weights
from nanochat.train.checkpoint_files import STATE_FILE
from nanochat.train.run_directory import STAGES


@dataclass(frozen=True)
class SourceModel:
    """A model that training goes on from."""

    directory: Path
    """The model directory, or the directory of one checkpoint."""
    tag: str
    """The run that it belongs to; a directory from elsewhere gives its own name."""
    settings: dict[str, Any]
    """What its stage was asked for; empty where nothing is known."""
    identity: dict[str, Any]
    """What its stage was."""

    @property
    def is_checkpoint(self) -> bool:
        """Whether it is a checkpoint of a run that is not finished, or was not then."""
        return _is_checkpoint(self.directory)

    @property
    def stage(self) -> Path:
        """The directory of its stage: what else is known of it stands there."""
        return _stage_of(self.directory)

    @property
    def name(self) -> str:
        """Stage, or path, as one speaks of it."""
        is_stage = self.directory.name == "model" and _in_runs(self.stage)
        return self.stage.name if is_stage else str(self.directory)

    def open(self) -> tuple[Tokenizer, GPTConfig]:
        """Its tokenizer and its shape. Raises UserError where they are missing, damaged or do not belong together."""
        if not self.is_checkpoint:
            config = load_config(self.directory)
            verify_model(self.directory)
            tokenizer = Tokenizer.from_directory(self.directory)
            check_belongs(self.directory, tokenizer, config)
            return tokenizer, config
        stage, known = self.stage, self.identity
        try:
            config = GPTConfig.from_depth(known["depth"], known["vocab_size"], known.get("context") or known["max_seq_len"])
            wanted = known["tokenizer"]
        except KeyError as error:
            raise UserError(f"{stage / 'config.json'} is missing or damaged ({error})") from None
        for place in [*stage.parent.glob("*/model"), *(base_dir() / "tokenizer").glob("*")]:
            with contextlib.suppress(UserError):
                tokenizer = Tokenizer.from_directory(place)
                if tokenizer.hash == wanted:
                    return tokenizer, config
        raise UserError(f"the tokenizer of {stage} ({wanted}) is neither among the tokenizers nor beside a model of the run")

    def setting(self, name: str, default: Any) -> Any:
        """A setting of its run, for a stage that is not told otherwise."""
        return self.settings.get(name, default)


def find_source(source: str, model_tag: str, usual: tuple[str, ...]) -> SourceModel:
    """The model that `--source` names: a stage of the run `model_tag` (or of the newest run), or a model or checkpoint directory.

    Without `source` the first of the `usual` stages that has a finished model. Raises UserError, saying what is there, when there is none.
    """
    if source and source not in STAGES:
        directory = named_path(source).absolute()
        if not (directory / "config.json").is_file() and not _is_checkpoint(directory):
            stages = ", ".join(STAGES)
            raise UserError(f"--source={source}: neither a stage ({stages}), nor a model directory (with a config.json), nor a checkpoint")
    else:
        directory = _newest((source,) if source else usual, model_tag)
    stage = _stage_of(directory)
    tag = model_tag or (stage.parent.name if _in_runs(stage) else directory.name)
    kept: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError, TypeError):
        kept = dict(read_json(stage / "config.json"))
    return SourceModel(directory, tag, dict(kept.get("settings") or {}), dict(kept.get("identity") or {}))


def _newest(stages: tuple[str, ...], model_tag: str) -> Path:
    for stage in stages[:-1]:
        with contextlib.suppress(UserError):
            return find_model((stage,), model_tag)
    return find_model((stages[-1],), model_tag)


def _stage_of(directory: Path) -> Path:
    return directory.parent.parent if _is_checkpoint(directory) else directory.parent


def _in_runs(stage: Path) -> bool:
    return stage.parent.parent == base_dir() / "runs"


def _is_checkpoint(directory: Path) -> bool:
    return directory.parent.name == "checkpoints" and (directory / STATE_FILE).is_file()


@torch.no_grad()
def load_weights(model: GPT, directory: Path) -> None:
    """Give a model in training, sharded or not, the weights of a model directory or of a checkpoint; each process reads what it holds.

    Raises UserError when one is missing, damaged or of another shape.
    """
    parameters = dict(model.named_parameters())
    if _is_checkpoint(directory):
        load_checkpoint_weights(directory, {f"model.{name}": p.detach() for name, p in parameters.items()})
        return
    for name, read in each_weight(directory, {name: tuple(p.shape) for name, p in parameters.items()}):
        held, first = rows_held(parameters[name])
        held.copy_(read(first, first + held.size(0)))
