"""A stage's directory: one process at a time, one model, resumed only as what it began as."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat.common.errors import UserError
from nanochat.common.files import read_json, remove, remove_leftovers, write_json
from nanochat.common.locks import TakenError, locked
from nanochat.common.paths import run_dir
from nanochat.common.secrets import without_secrets
from nanochat.plan.settings import OFF
from nanochat.train.checkpoint_directory import COPIED_FILE

LENGTH_FLAGS = ("num_iterations", "num_epochs", "target_flops", "target_param_data_ratio", "target_hours", "target_usd")
"""What says how long a stage trains."""
STAGES = ("base", "mid", "sft", "rl", "dpo")
"""In the order in which a run comes to them."""


def identity_of(stage: Path) -> dict[str, Any] | None:
    """What a stage's config.json says that its run is; None where nothing does."""
    try:
        return dict(read_json(stage / "config.json")["identity"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """The first thing in which two runs are not the same; empty where there is none."""
    for key, value in without_secrets(now).items():
        if before.get(key) != value:
            return f"with {key} {before.get(key)}, this one asks for {value}"
    return ""


@dataclass(frozen=True)
class StageDirectory:
    """`runs/TAG/STAGE`."""

    tag: str
    """The run's name."""
    stage: str
    """base, mid, sft or rl."""

    @property
    def path(self) -> Path:
        """The directory itself."""
        return run_dir(self.tag) / self.stage

    @property
    def model(self) -> Path:
        """The finished model; the stage is done when it stands."""
        return self.path / "model"

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints lie."""
        return self.path / "checkpoints"

    @property
    def to_begin_anew(self) -> str:
        """What somebody does who wants to."""
        return f"choose another --model_tag, or remove {self.path} (and, where it has a mirror, {self.tag}/{self.stage} there)"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory for this process. Raises UserError when another run has it."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise UserError(f"{self.path} cannot be made, a file stands in its place: move it, or choose another --model_tag") from None
        try:
            with locked(self.path / ".lock", patience_s=0):
                remove_leftovers(self.path)
                remove_leftovers(self.checkpoints)
                remove(self.checkpoints / COPIED_FILE)  # of a copy that was killed
                yield
        except TakenError as taken:
            raise UserError(f"another process is training in {self.path}{taken.hint}: wait for it, or choose another --model_tag") from None

    def settle(self, identity: dict[str, Any], settings: dict[str, Any]) -> None:
        """Keep in config.json what this run is (`identity`) and how it was asked for (`settings`), without secrets.

        Raises UserError when the directory belongs to a run of another identity.
        """
        identity, settings = without_secrets(identity), without_secrets(settings)
        path = self.path / "config.json"
        if path.is_file() and (self.model.exists() or self.checkpoints.exists()):
            before = identity_of(self.path)
            if before is None:
                raise UserError(f"{path} is damaged: {self.to_begin_anew}")
            if differing := difference(before, identity):
                raise UserError(f"{self.path} belongs to a run {differing}: {self.to_begin_anew}")
        if not self.model.exists():
            write_json(path, {"identity": identity, "settings": settings})

    def other_length(self, settings: dict[str, Any]) -> str:
        """The flag by which a finished stage was asked to be longer or shorter than now, as a sentence; empty where none is."""
        path = self.path / "config.json"
        kept = read_json(path)["settings"] if path.is_file() else {}
        for name in LENGTH_FLAGS:
            if name in kept and name in settings and kept[name] != settings[name]:
                return f"{self.path} was finished with --{name}={kept[name]}, and --{name}={settings[name]} is asked for now"
            if name == "num_iterations" and kept.get(name, OFF) != OFF:
                return ""  # it overrules the others
        return ""

    def frozen(self, name: str, value: dict[str, Any]) -> dict[str, Any]:
        """The value kept under that name since the run began; now, when it begins."""
        path = self.path / name
        if not (path.is_file() and self.checkpoints.exists()):
            write_json(path, value)
        try:
            return dict(read_json(path))
        except (ValueError, TypeError):
            raise UserError(f"{path} is damaged: {self.to_begin_anew}") from None
