"""Checkpoints: all that a run needs to go on as if it had never stopped."""

import re
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from nanochat.common.console import warn
from nanochat.common.errors import UserError
from nanochat.common.files import atomic_path, read_json, save_safetensors, write_json
from nanochat.model.gpt import GPT
from nanochat.optim.build import Optimizers

KEEP = 2


@dataclass
class RunState:
    """Where a run stands, besides its tensors."""

    step: int = 0
    """Steps done."""
    samples: int = 0
    """Samples taken; the data's order is a function of their numbers."""
    elapsed_s: float = 0.0
    """Seconds spent training, over all starts."""
    extra: dict[str, float] = field(default_factory=dict)
    """Figures that later stages and the report want, such as the last validation."""


def named_tensors(model: GPT, optimizers: Optimizers) -> dict[str, Tensor]:
    """Every tensor that training changes: `model.NAME`, and `optimizer.KEY.NAME` for what the optimizers keep of it."""
    tensors = {f"model.{name}": parameter.detach() for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        for optimizer in optimizers.all:
            if parameter in optimizer.state:
                tensors |= {f"optimizer.{key}.{name}": value for key, value in optimizer.state[parameter].items()}
    return tensors


class Checkpoints:
    """The checkpoints of one stage of a run: directories `step_00000100`, complete or absent; the last two are kept."""

    def __init__(self, directory: Path):
        self.directory = directory

    def all(self) -> list[Path]:
        """Those that are there, oldest first."""
        return sorted(p for p in self.directory.glob("step_*") if re.fullmatch(r"step_\d{8}", p.name))

    def save(self, state: RunState, model: GPT, optimizers: Optimizers) -> Path:
        """Write a checkpoint, then remove those older than the last two."""
        path = self.directory / f"step_{state.step:08d}"
        with atomic_path(path) as aside:
            aside.mkdir()
            tensors = {name: tensor.cpu().contiguous() for name, tensor in named_tensors(model, optimizers).items()}
            save_safetensors(aside / "state.safetensors", tensors)
            write_json(aside / "state.json", asdict(state))
        for old in self.all()[:-KEEP]:
            shutil.rmtree(old)
        return path

    def load(self, model: GPT, optimizers: Optimizers) -> RunState:
        """Bring model and optimizers to the newest checkpoint that can be read; where there is none, return a new state.

        Raises UserError when its tensors are not those of this model, or when all that are there are damaged.
        """
        found = self.all()
        for path in reversed(found):
            try:
                return _load(path, model, optimizers)
            except (OSError, ValueError, TypeError, SafetensorError) as error:
                warn(f"{path} is damaged ({error}); the checkpoint before it is tried")
        if found:
            raise UserError(f"every checkpoint in {self.directory} is damaged: remove that directory to begin anew")
        return RunState()


def _load(path: Path, model: GPT, optimizers: Optimizers) -> RunState:
    state = RunState(**read_json(path / "state.json"))
    parameters = dict(model.named_parameters())
    owners = {p: o for o in optimizers.all for group in o.param_groups for p in group["params"]}
    with safe_open(path / "state.safetensors", framework="pt") as file:
        names = set(file.keys())
        missing = {f"model.{name}" for name in parameters} - names
        if missing:
            raise UserError(f"{path} has no tensor {min(missing)}: it is another model's checkpoint; choose another --model_tag")
        for full_name in names:
            kind, rest = full_name.split(".", 1)
            key, name = ("", rest) if kind == "model" else rest.split(".", 1)
            value, parameter = file.get_tensor(full_name), parameters.get(name)
            if parameter is None or (value.dim() and value.shape != parameter.shape):
                raise UserError(f"{path}: {name} of shape {tuple(value.shape)} is not this model's; choose another --model_tag")
            if kind == "model":
                parameter.data.copy_(value)
            else:
                owners[parameter].state[parameter][key] = value.to(parameter.device)
    return state
