"""What was measured of training steps, on which GPU: the table that the predictions are held to."""

import datetime
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from nanochat.common.errors import UserError
from nanochat.plan.hardware import GPUS

TABLE = Path(__file__).with_name("measurements.json")


@dataclass(frozen=True)
class Measurement:
    """One configuration of one rank of `world_size`, measured on one GPU without communication."""

    gpu: str
    """Kind, as --gpus names it."""
    precision: str
    """bf16, fp32 or fp8."""
    depth: int
    """Layers."""
    seq_len: int
    """Tokens of a sequence."""
    vocab_size: int
    """Entries of the vocabulary."""
    micro_batch_size: int
    """Sequences of a micro-batch."""
    grad_accum_steps: int
    """Micro-batches of a step."""
    recompute: str
    """As --recompute takes it."""
    reshard: bool
    """Whether weights were given up after the forward pass."""
    world_size: int
    """Ranks that share the weights; one of them was run."""
    tok_per_s: float
    """Of the rank."""
    mfu: float | None
    """Share of the dense bf16 peak, by the convention of the plan; None on a CPU."""
    step_s: float
    """Seconds of a step."""
    peak_allocated_gib: float
    """Peak of torch.cuda.max_memory_allocated()."""
    peak_reserved_gib: float | None
    """Peak of torch.cuda.max_memory_reserved(); None where it was not kept."""
    torch: str
    """Version."""
    cuda: str | None
    """Version; None on a CPU."""
    date: str | None
    """ISO date; None where it was not kept."""
    command: str | None
    """What measures it again; None where that program is not part of this project."""
    source: str
    """`bench_train`; or `prototype`, an early program with the same sizes whose layers kept more for the backward pass."""
    saved_widths: float | None = None
    """Tensors of tokens × width that a layer kept, where they are not those of this model."""
    recipe: str = ""
    """Kernels, as --recipe takes them; empty where they were not kept."""
    optimizer_s: float | None = None
    """Seconds of a step that the optimizer takes."""
    first_step_s: float | None = None
    """Seconds from the start of the process to the end of its first step, with compiled kernels in the cache."""
    cold_first_step_s: float | None = None
    """The same with an empty cache."""

    @property
    def step(self) -> tuple[object, ...]:
        """What was computed, by whatever kernels."""
        sizes = (self.depth, self.seq_len, self.vocab_size, self.micro_batch_size, self.grad_accum_steps)
        return (self.gpu, self.precision, *sizes, self.recompute, self.reshard, self.world_size)

    @property
    def configuration(self) -> tuple[object, ...]:
        """What one row is kept of: the newest measurement of the same configuration takes its place."""
        return (*self.step, self.recipe, self.source)


def row_of(result: dict[str, Any], date: str) -> Measurement:
    """The row of what `scripts.bench_train --json` says."""
    same = (
        "gpu",
        "precision",
        "depth",
        "vocab_size",
        "micro_batch_size",
        "grad_accum_steps",
        "recompute",
        "reshard",
        "world_size",
        "recipe",
    )
    figures = ("tok_per_s", "mfu", "step_s", "peak_allocated_gib", "peak_reserved_gib", "torch", "cuda")
    flags = (
        "depth",
        "max_seq_len",
        "device_batch_size",
        "total_batch_size",
        "precision",
        "vocab_size",
        "micro_batch_size",
        "recompute",
        "recipe",
    )
    command = [
        *("python -m scripts.bench_train", *([f"--simulate --world_size={result['world_size']}"] if result["simulated"] else [])),
        *(f"--{name}={result[name]}" for name in flags),
        f"--reshard_after_forward={'always' if result['reshard'] else 'never'}",
    ]
    return Measurement(
        **{name: result[name] for name in (*same, *figures)},
        seq_len=result["max_seq_len"],
        optimizer_s=result["optimizer_s"],
        first_step_s=result["first_step_after_start_s"],
        cold_first_step_s=result.get("cold_first_step_after_start_s"),
        date=date,
        command=" ".join(command),
        source="bench_train",
    )


def today() -> str:
    """The date, by ISO, in universal time."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def read(path: Path | None = None) -> tuple[Measurement, ...]:
    """All rows of a table; of the project's own where none is named."""
    return tuple(Measurement(**row) for row in json.loads((path or TABLE).read_text(encoding="utf-8")))


@cache
def of_kind(gpu: str, precision: str) -> tuple[Measurement, ...]:
    """The rows of one kind of GPU in one precision; those of a prototype only where nothing else was measured."""
    rows = tuple(row for row in read() if (row.gpu, row.precision) == (gpu, precision))
    return fastest(row for row in rows if row.source != "prototype") or rows


def fastest(rows: Iterable[Measurement]) -> tuple[Measurement, ...]:
    """Of each way to divide a step the row with the fastest kernels."""
    found: dict[tuple[object, ...], Measurement] = {}
    for row in sorted(rows, key=lambda row: -row.step_s):
        found[row.step] = row
    return tuple(found.values())


def basis(gpu: str, precision: str) -> str:
    """What predictions of speed for a kind of GPU rest on, in words."""
    rows = of_kind(gpu, precision)
    if not rows:
        return "estimated"
    if rows[0].source == "prototype":
        return "from a prototype"
    newest = max(rows, key=lambda row: row.date or "")
    depths = sorted({row.depth for row in rows})
    at = f"depth{'s' * (len(depths) > 1)} {' and '.join(map(str, depths))}"
    return f"measured {newest.date} at {at} with torch {newest.torch}, CUDA {newest.cuda}"


def record(row: Measurement, path: Path | None = None) -> None:
    """Add a row to a table, in place of an older one of the same configuration.

    Raises UserError for a kind of GPU that is not in the planner's table.
    """
    from nanochat.common.files import write_json

    if row.gpu not in [gpu.name for gpu in GPUS]:
        raise UserError(f"{row.gpu} is not in the table of GPUs, so its measurement cannot be kept; add it to nanochat/plan/hardware.py")
    rows = [each for each in read(path) if each.configuration != row.configuration]
    write_json(path or TABLE, [asdict(each) for each in [*rows, row]])
    of_kind.cache_clear()
