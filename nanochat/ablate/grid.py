"""A grid of runs, read from a small file: a baseline, and named changes to it. Imports nothing heavy."""

import difflib
import tomllib
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from nanochat.common.errors import UserError
from nanochat.plan import batch
from nanochat.train.settings import BaseTrainSettings

BASELINE = "baseline"
OURS = {"depth", "seed", "model_tag", "run", "checkpoint_mirror"}
"""Settings that the grid itself gives to each run."""
TOP = {"depths": list, "seeds": int, "max_epochs": (int, float), BASELINE: dict, "changes": dict}


@dataclass(frozen=True)
class Run:
    """One run of a grid."""

    change: str
    """Name of the change; `baseline` for none."""
    depth: int
    seed: int
    settings: dict[str, Any]
    """Flags of base_train, without depth and seed."""

    @property
    def name(self) -> str:
        """As its directory is called."""
        return f"{self.change}-d{self.depth}-s{self.seed}"

    def steps(self, vocab_size: int) -> int:
        """How many it takes. Raises UserError where nothing says so."""
        value = {**DEFAULTS, **self.settings}
        return batch.num_iterations(
            self.depth,
            vocab_size,
            value["max_seq_len"],
            value["total_batch_size"],
            value["num_iterations"],
            value["target_flops"],
            value["target_param_data_ratio"],
        )

    def tokens_per_step(self) -> int:
        """Tokens of one."""
        return int({**DEFAULTS, **self.settings}["total_batch_size"])


@dataclass(frozen=True)
class Grid:
    """What a file asks for."""

    name: str
    """The file's own, without its ending."""
    depths: tuple[int, ...]
    seeds: int
    """Runs of each change at each depth; their seeds are 1, 2, …"""
    max_epochs: float
    """How many times a run may see the text."""
    baseline: dict[str, Any]
    changes: dict[str, dict[str, Any]]

    def runs(self) -> list[Run]:
        """All of them, the baseline's first: what the others are held against."""
        return [
            Run(change, depth, seed, {**self.baseline, **settings})
            for change, settings in {BASELINE: {}, **self.changes}.items()
            for depth in self.depths
            for seed in range(1, self.seeds + 1)
        ]


DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(BaseTrainSettings) if field.default is not MISSING}


def read_grid(path: Path) -> Grid:
    """The grid of a TOML file. Raises UserError, naming the line or the setting, for one that cannot be run."""
    try:
        value = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error})") from None
    except tomllib.TOMLDecodeError as error:
        twice = "; two runs have the same name" if "Cannot declare" in str(error) or "overwrite" in str(error) else ""
        raise UserError(f"{path}: {error}{twice}") from None
    for key, given in value.items():
        if key not in TOP:
            raise UserError(f"{path}: {key} means nothing here; {_nearest(key, list(TOP))}")
        if not isinstance(given, TOP[key]) or isinstance(given, bool):  # type: ignore[arg-type]
            raise UserError(f"{path}: {key} = {given!r} is not what is expected of it")
    changes = value.get("changes", {})
    if BASELINE in changes:
        raise UserError(f"{path}: a change is called {BASELINE}, as what it is held against: call it otherwise")
    grid = Grid(
        path.stem, tuple(value.get("depths", [4])), value.get("seeds", 2), value.get("max_epochs", 1), value.get(BASELINE, {}), changes
    )
    check_grid(grid, str(path))
    return grid


def check_grid(grid: Grid, where: str) -> None:
    """Raises UserError where a grid names what does not exist, or asks for what no run can be."""
    if not grid.changes:
        raise UserError(f"{where}: no [changes.NAME] to hold against the baseline")
    if not grid.depths or grid.seeds < 1:
        raise UserError(f"{where}: depths = {list(grid.depths)}, seeds = {grid.seeds}: at least one of each")
    for name, settings in {BASELINE: grid.baseline, **grid.changes}.items():
        if not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
            raise UserError(f"{where}: a change's name is of letters, digits, - _ and . only, unlike {name!r}")
        if not isinstance(settings, dict):
            raise UserError(f"{where}: [changes.{name}] is a table of settings")
        if name != BASELINE and not settings:
            raise UserError(f"{where}: [changes.{name}] changes nothing")
        for key, given in settings.items():
            if key in OURS:
                raise UserError(f"{where}: {name}: {key} is not a change's to set")
            if key not in DEFAULTS:
                raise UserError(f"{where}: {name}: base_train has no setting {key}; {_nearest(key, list(DEFAULTS))}")
            kind = type(DEFAULTS[key])
            if DEFAULTS[key] is not None and not isinstance(given, (int, float) if kind is float else kind):
                raise UserError(f"{where}: {name}: {key} = {given!r} is not a {kind.__name__}")
    for run in grid.runs():
        try:
            BaseTrainSettings(**{**run.settings, "depth": run.depth, "seed": run.seed, "model_tag": run.name}).check()
        except UserError as error:
            raise UserError(f"{where}: {run.change}: {error}") from None


def check_text(grid: Grid, vocab_size: int, tokens_there: int) -> None:
    """Raises UserError where a run would see the text more often than the grid allows."""
    for run in grid.runs():
        epochs = run.steps(vocab_size) * run.tokens_per_step() / tokens_there
        if epochs > grid.max_epochs:
            raise UserError(
                f"{run.change} at depth {run.depth} wants {run.steps(vocab_size) * run.tokens_per_step():,} tokens, and there are "
                f"{tokens_there:,}: it would be {epochs:.2f} epochs; give more text, ask for less, or allow it: max_epochs = {epochs:.2f}"
            )


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, 3)
    return f"is {' or '.join(near)} meant?" if near else f"there are {', '.join(known)}"
