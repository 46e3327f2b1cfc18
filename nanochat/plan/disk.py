"""What a run needs on disk, and whether there is room."""

import math
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from nanochat.common.errors import UserError
from nanochat.common.paths import base_dir, base_path
from nanochat.plan.sizes import Shape

TRAIN_SHARDS = {"climbmix": 6542, "fineweb-edu": 1822}  # of each source on the hub; one more is for validation
SHARD_CHARS = 250e6
CHARS_PER_TOKEN = 4.8  # with 65,536 entries
SHARD_TOKENS = SHARD_CHARS / CHARS_PER_TOKEN
SHARD_BYTES = 0.1e9
TOKEN_BYTES = 2
SPARE = 1.03  # shards differ in size
CHECKPOINTS = 3  # two that are kept and one being written
MIRROR = "CHECKPOINT_MIRROR"  # variable that names an address, to which one more is being copied
LATER_STAGES = ("mid", "sft", "rl")
MASTER_BYTES = 4
MODEL_BYTES = 2  # the finished model is bf16


@dataclass(frozen=True)
class Disk:
    """What a run reads and writes."""

    text_shards: int
    """Train shards of text to fetch; the validation shard comes on top. None of a text that is not on the hub."""
    epochs: float | None
    """How often training goes through all the text that the source has; below 1 it never repeats. None where its length is not known."""
    text_gb: float
    """Text, validation with it."""
    tokens_gb: float
    """Token shards of the same text."""
    one_checkpoint_gb: float
    """One checkpoint: the float32 weights and what the optimizers keep."""
    checkpoint_gb: float
    """Checkpoints of base training, those that are kept for good with them, and the finished model."""
    later_stage_gb: float
    """The two checkpoints that are kept and the model of each stage after it."""

    @property
    def data_gb(self) -> float:
        """Text and token shards."""
        return self.text_gb + self.tokens_gb

    @property
    def later_stages_gb(self) -> float:
        """Checkpoints and models of all stages after base training."""
        return len(LATER_STAGES) * self.later_stage_gb

    @property
    def total_gb(self) -> float:
        """All that a run from text to its last stage reads and writes."""
        return self.data_gb + self.checkpoint_gb + self.later_stages_gb


def disk_of(shape: Shape, tokens: int, data: str, kept: int = 0) -> Disk:
    """What training on so many tokens of a source needs, where `kept` checkpoints are kept for good besides the last two.

    A text that is not on the hub is on this machine already, and as small as it is.
    """
    most = TRAIN_SHARDS.get(data)
    shards = min(most, math.ceil(SPARE * tokens / SHARD_TOKENS)) if most else 0
    files = shards + 1 if most else 0  # validation's
    matrices, tables = shape.depth * shape.block_parameters, 2 * shape.embedding_parameters
    # Muon keeps one number of state for each parameter, AdamW two.
    checkpoint_gb = MASTER_BYTES * (shape.parameters + matrices + 2 * tables) / 1e9
    model_gb = MODEL_BYTES * shape.parameters / 1e9
    return Disk(
        text_shards=shards,
        epochs=tokens / (most * SHARD_TOKENS) if most else None,
        text_gb=files * SHARD_BYTES / 1e9,
        tokens_gb=files * SHARD_TOKENS * TOKEN_BYTES / 1e9,
        one_checkpoint_gb=checkpoint_gb,
        checkpoint_gb=(CHECKPOINTS + kept) * checkpoint_gb + model_gb,
        later_stage_gb=(CHECKPOINTS - 1) * checkpoint_gb + model_gb,
    )


def kept_for_good(steps: int, keep_every: int) -> int:
    """Checkpoints that --keep_every keeps besides the last two, at most; none where it is not above 0."""
    return (steps - 1) // keep_every if keep_every > 0 else 0


@dataclass(frozen=True)
class Need:
    """One part of what a run will still write."""

    name: str
    """What it is."""
    directory: Path
    """Where it will lie, whether that is there yet or not."""
    gb: float
    """What is not there yet."""
    later: bool = False
    """Whether base training is done before it is written."""


def still_needed(disk: Disk, data: str, depth: int) -> list[Need]:
    """What the run of a depth will still write; what is there already needs no room, nor does a stage whose model stands."""
    base, run = base_path(), base_path() / "runs" / f"d{depth}"
    copied_gb = disk.one_checkpoint_gb if os.environ.get(MIRROR) else 0.0
    passing_gb = disk.one_checkpoint_gb + copied_gb  # of the stage that trains, whichever it is: counted once
    needs = []
    if not (run / "base" / "model").is_dir():
        text, tokens = base / "data" / data, base / "tokens"
        needs = [
            Need("text", text, disk.text_gb - _gb_in([text])),
            Need("token shards", tokens, disk.tokens_gb - _gb_in(tokens.glob(f"{data}-*"))),
            Need("checkpoints", run / "base", disk.checkpoint_gb + copied_gb - _gb_in([run / "base"])),
        ]
        passing_gb = 0.0
    for stage in LATER_STAGES:
        if not (run / stage / "model").is_dir():
            needs.append(Need(f"stage {stage}", run / stage, disk.later_stage_gb + passing_gb - _gb_in([run / stage]), later=True))
            passing_gb = 0.0
    return [need for need in needs if need.gb > 0]


@dataclass(frozen=True)
class Room:
    """One disk, and what a run will write to it."""

    directory: Path
    """A directory on it, which is there."""
    free_gb: float
    """What this user may still write."""
    needs: tuple[Need, ...]
    """What goes there."""

    @classmethod
    def of(cls, directory: Path, needs: Iterable[Need]) -> "Room":
        """The disk that a directory is on."""
        return cls(directory, shutil.disk_usage(directory).free / 1e9, tuple(needs))

    @property
    def needed_gb(self) -> float:
        """All of it."""
        return sum(need.gb for need in self.needs)

    @property
    def is_enough(self) -> bool:
        """Whether all of it fits."""
        return self.needed_gb <= self.free_gb

    @property
    def sentence(self) -> str:
        """What there is and what is needed."""
        parts = ", ".join(f"{need.name} {need.gb:,.1f}" for need in self.needs)
        needed = f"and this run needs {self.needed_gb:,.1f} GB more ({parts})" if self.needs else "and this run needs no more"
        return f"{self.directory} has {self.free_gb:,.1f} GB free, {needed}"


def rooms(needs: Iterable[Need]) -> list[Room]:
    """The disks that these needs fall on: parts of the base directory may be links or mounts."""
    by_disk: dict[int, tuple[Path, list[Need]]] = {}
    for need in needs:
        there = _nearest(base_path())
        if _nearest(need.directory).stat().st_dev != there.stat().st_dev:
            there = _nearest(need.directory)
        by_disk.setdefault(there.stat().st_dev, (there, []))[1].append(need)
    return [Room.of(there, on_it) for there, on_it in by_disk.values()]


def check_disk(disk: Disk, data: str, depth: int) -> None:
    """Raises UserError when a disk of the base directory has no room for what base training has still to write there."""
    base_dir()
    for room in rooms(need for need in still_needed(disk, data, depth) if not need.later):
        if not room.is_enough:
            raise UserError(f"the disk of {room.sentence}: make room, or set NANOCHAT_BASE_DIR to a directory on a larger disk")


def _nearest(path: Path) -> Path:
    """The path itself, or the nearest directory above it that is there."""
    return next(each for each in (path, *path.parents) if each.exists())


def _gb_in(directories: Iterable[Path]) -> float:
    """What the files of directories take; files that vanish meanwhile take nothing."""
    total = 0
    for path in (path for directory in directories for path in directory.rglob("*")):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:
            continue
    return total / 1e9
