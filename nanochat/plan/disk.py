"""What a run needs on disk, and whether there is room."""

import math
import shutil
from dataclasses import dataclass
from pathlib import Path

from nanochat.common.errors import UserError
from nanochat.common.paths import base_dir
from nanochat.plan.sizes import Shape

TRAIN_SHARDS = {"climbmix": 6542, "fineweb-edu": 1822}  # of each source on the hub; one more is for validation
SHARD_CHARS = 250e6
CHARS_PER_TOKEN = 4.8  # with 65,536 entries
SHARD_TOKENS = SHARD_CHARS / CHARS_PER_TOKEN
SHARD_BYTES = 0.1e9
TOKEN_BYTES = 2
SPARE = 1.03  # shards differ in size
CHECKPOINTS = 3  # two that are kept and one being written
MASTER_BYTES = 4
MODEL_BYTES = 2  # the finished model is bf16


@dataclass(frozen=True)
class Disk:
    """What a run reads and writes."""

    text_shards: int
    """Train shards of text to fetch; the validation shard comes on top."""
    epochs: float
    """How often training goes through all the text that the source has; below 1 it never repeats."""
    text_gb: float
    """Text, validation with it."""
    tokens_gb: float
    """Token shards of the same text."""
    checkpoint_gb: float
    """Checkpoints and the finished model."""

    @property
    def data_gb(self) -> float:
        """Text and token shards."""
        return self.text_gb + self.tokens_gb


def disk_of(shape: Shape, tokens: int, data: str) -> Disk:
    """What training on so many tokens of a source on the hub needs."""
    most = TRAIN_SHARDS[data]
    shards = min(most, math.ceil(SPARE * tokens / SHARD_TOKENS))
    matrices, tables = shape.depth * shape.block_parameters, 2 * shape.embedding_parameters
    # Muon keeps one number of state for each parameter, AdamW two.
    checkpoint = MASTER_BYTES * (shape.parameters + matrices + 2 * tables)
    return Disk(
        text_shards=shards,
        epochs=tokens / (most * SHARD_TOKENS),
        text_gb=(shards + 1) * SHARD_BYTES / 1e9,
        tokens_gb=(shards + 1) * SHARD_TOKENS * TOKEN_BYTES / 1e9,
        checkpoint_gb=(CHECKPOINTS * checkpoint + MODEL_BYTES * shape.parameters) / 1e9,
    )


def check_disk(disk: Disk, data: str, depth: int) -> None:
    """Raises UserError when the disk of the base directory has no room for what is not there yet."""
    base = base_dir()
    there = {
        "text": (disk.text_gb, base / "data" / data),
        "token shards": (disk.tokens_gb, base / "tokens"),
        "checkpoints": (disk.checkpoint_gb, base / "runs" / f"d{depth}" / "base"),
    }
    missing = {name: max(0.0, gb - _gb_in(directory)) for name, (gb, directory) in there.items()}
    free_gb = shutil.disk_usage(base).free / 1e9
    if sum(missing.values()) > free_gb:
        parts = ", ".join(f"{name} {gb:,.1f}" for name, gb in missing.items() if gb)
        raise UserError(
            f"the disk of {base} has {free_gb:,.1f} GB free, and this run needs {sum(missing.values()):,.1f} GB more ({parts}): "
            "make room, or set NANOCHAT_BASE_DIR to a directory on a larger disk"
        )


def _gb_in(directory: Path) -> float:
    """What the files of a directory take; files that vanish meanwhile take nothing."""
    total = 0
    for path in directory.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:
            continue
    return total / 1e9
