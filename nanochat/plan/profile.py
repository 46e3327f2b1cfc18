"""What `scripts.tune` found out about this machine: what is proven, what is fastest, how fast. Trainer, planner and report read it."""

import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from math import log2
from pathlib import Path
from typing import Any

from nanochat.common.console import warn
from nanochat.common.errors import UserError
from nanochat.common.locks import locked
from nanochat.common.paths import base_path
from nanochat.plan import measurements
from nanochat.plan.hardware import Gpu
from nanochat.plan.measurements import Measurement
from nanochat.plan.recipe import Recipe

FORMAT = 2
FAR = 4  # times as deep
UNFINISHED = "unfinished"  # as a driver: what is proven is known, and what is fastest not yet


@dataclass(frozen=True)
class Tuned:
    """The fastest that was found for one size in one precision."""

    depth: int
    """Layers."""
    seq_len: int
    """Tokens of a sequence."""
    precision: str
    """bf16, fp32 or fp8."""
    recipe: Recipe
    """The kernels."""
    tok_per_s: float
    """Of one rank."""
    tried: int
    """Ways that were measured."""


@dataclass(frozen=True)
class Profile:
    """One kind of machine, under one version of torch."""

    machine: str
    """Kind of GPU as the planner names it, or the processor and its cores."""
    torch: str
    """Version."""
    cuda: str | None
    """Version; None on a CPU."""
    driver: str
    """Version of the GPU's driver; empty on a CPU; `unfinished` where it is not tuned yet."""
    date: str
    """ISO date."""
    precision: str
    """What --precision=auto is: bf16 or fp32; or auto, where no speed was measured."""
    tuned: tuple[Tuned, ...]
    """The fastest, by size and precision."""
    rows: tuple[Measurement, ...]
    """Every configuration that was measured, as the repository's table has them."""
    proofs: tuple[dict[str, Any], ...]
    """What was proven and what was not: `name`, `precision`, `error`, `tolerance`, `passed`, and `note` where it raised.

    `at`: [depth, tokens of a sequence, vocabulary], where it proved itself as a run of that size began, and for no other.
    """
    figures: tuple[dict[str, Any], ...] = ()
    """What scripts.bench_train --json said of each winner."""
    struck: tuple[str, ...] = ()
    """What was left out in the real step, and why."""
    link_bytes_per_s: float | None = None
    """Between the GPUs, of one, in one direction, in an all-gather; None where there is one GPU."""
    link_ranks: int = 1
    """GPUs that this was measured between."""
    format: int = field(default=FORMAT)
    """Of this file."""

    def recipe_for(self, precision: str, depth: int, seq_len: int) -> Tuned | None:
        """The fastest kernels for a size: those of the tuned size that is nearest; None where the precision was not tuned."""
        near = [each for each in self.tuned if each.precision == precision]
        if not near:
            return None
        best = min(near, key=lambda each: (abs(log2(each.seq_len / seq_len)), abs(each.depth - depth)))
        if seq_len > best.seq_len and best.recipe.attention == "products":  # its scores grow with the square of the sequence
            return replace(best, recipe=replace(best.recipe, attention="fused"))
        return best

    def proves(self, name: str, precision: str, at: list[int] | None = None) -> bool:
        """Whether a choice, as in `attention=flash`, was proven in a precision; at: for a run of that size, as `proofs` have it."""
        found = [each for each in self.proofs if (each["name"], each["precision"]) == (name, precision)]
        return any(each["passed"] and each.get("at") in (None, at) for each in found)

    def strikes(self, name: str, precision: str) -> bool:
        """Whether a choice was tried and found wrong in a precision."""
        return any(each["name"] == name and each["precision"] == precision and not each["passed"] for each in self.proofs)

    @classmethod
    def from_json(cls, value: Any) -> "Profile":
        """From what asdict made. Raises ValueError, TypeError or KeyError for what is no profile of this format."""
        if value["format"] != FORMAT:
            raise ValueError("another format")
        tuned = [Tuned(**{**each, "recipe": Recipe.of(each["recipe"])}) for each in value["tuned"]]
        if any(each.recipe is None for each in tuned):
            raise ValueError("an unknown recipe")
        rows = tuple(Measurement(**row) for row in value["rows"])
        lists: dict[str, Any] = {name: tuple(value[name]) for name in ("proofs", "figures", "struck")}
        plain = {each.name: value[each.name] for each in fields(cls) if each.name not in ("tuned", "rows", *lists)}
        return cls(**{**plain, **lists, "tuned": tuple(tuned), "rows": rows})


def usable_cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def processor() -> str:
    """The processor's name."""
    try:
        names = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    except OSError:
        names = [platform.processor()]
    return (names[0] if names else "") or platform.machine()


def machine_of(gpu: Gpu) -> str:
    """What a profile calls the machine that has such a GPU, or none."""
    cores = usable_cores()
    return f"{processor()}, {cores} core{'s' * (cores > 1)}" if gpu.is_cpu else gpu.name


@cache
def torch_version() -> str:
    """Of the torch that is installed; empty where none is."""
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return ""


def profile_path(gpu: Gpu) -> Path:
    """Where the profile of a kind of machine lies, for the torch that is installed."""
    name = re.sub(r"[^A-Za-z0-9.]+", "-", f"{machine_of(gpu)} torch {torch_version()}").strip("-")
    return base_path() / "profiles" / f"{name}.json"


def profile_of(gpu: Gpu) -> Profile | None:
    """The profile of a kind of machine; None where it was not tuned, or with another torch. One that cannot be read is said."""
    path = profile_path(gpu)
    try:
        return _read(path, path.stat().st_mtime_ns)
    except OSError:
        return None


@cache
def _read(path: Path, _changed_ns: int) -> Profile | None:
    try:
        return read_profile(path)
    except UserError as error:
        warn(f"{error}; python -m scripts.tune makes it anew")
        return None


def read_profile(path: Path) -> Profile:
    """The profile in a file. Raises UserError where it is none."""
    try:
        return Profile.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is no profile that can be read ({error})") from None


def write_profile(gpu: Gpu, profile: Profile) -> Path:
    """Keep it; returns where."""
    with _writing(gpu):
        return _write(gpu, profile)


@contextmanager
def _writing(gpu: Gpu) -> Iterator[None]:
    path = profile_path(gpu)
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_suffix(".writing")):
        yield


def _write(gpu: Gpu, profile: Profile) -> Path:
    from nanochat.common.files import write_json

    path = profile_path(gpu)
    write_json(path, asdict(profile))
    return path


def add_proofs(gpu: Gpu, proofs: list[dict[str, Any]], cuda: str | None) -> None:
    """Keep what proved itself outside of a tuning in the machine's profile, or in one that has nothing else.

    proofs: as `Profile.proofs` has them, with `at`. cuda: version. A profile that cannot be read is left as it is. Where none can be
    written it is only said: what proved itself is proven again next time.
    """
    try:
        with _writing(gpu):
            old = profile_of(gpu)
            if old is None and profile_path(gpu).exists():
                return
            profile = old or Profile(machine_of(gpu), torch_version(), cuda, UNFINISHED, measurements.today(), "auto", (), (), ())
            _write(gpu, replace(profile, proofs=(*(each for each in profile.proofs if each not in proofs), *proofs)))
    except (OSError, UserError) as error:
        warn(f"what proved itself here is not kept ({error}), and will be proven again at the next start")


def measured(gpu: Gpu, precision: str, depth: int) -> tuple[Measurement, ...]:
    """What was measured of steps on such a machine: by its own profile the depth nearest to this one, else by the repository's table.

    What was measured at depths far from it says little, and is left out: small steps wait for the CPU.
    """
    profile = profile_of(gpu)
    own = [row for row in profile.rows if row.precision == precision and 1 / FAR <= row.depth / depth <= FAR] if profile else []
    if not own:
        return measurements.of_kind(gpu.name, precision)
    nearest = min((row.depth for row in own), key=lambda each: abs(log2(each / depth)))
    return tuple(row for row in own if row.depth == nearest)


def basis(gpu: Gpu, precision: str, depth: int) -> str:
    """What predictions of speed for such a machine rest on, in words."""
    profile = profile_of(gpu)
    rows = measured(gpu, precision, depth)
    if profile and rows and rows[0] in profile.rows:
        return f"measured here {profile.date} with torch {profile.torch}" + (f", CUDA {profile.cuda}" if profile.cuda else "")
    return measurements.basis(gpu.name, precision)


def with_own_links(gpu: Gpu, link_share: float) -> Gpu:
    """The GPU with the links that were measured; link_share: what share of a link's speed the planner reckons with."""
    profile = profile_of(gpu)
    return replace(gpu, link_bytes_per_s=profile.link_bytes_per_s / link_share) if profile and profile.link_bytes_per_s else gpu
