"""Versions: what is installed against what this project asks for, and torch's CUDA against the GPUs' driver."""

import ctypes
import importlib.metadata
import importlib.util
import platform
import runpy
import tomllib
from pathlib import Path

from nanochat.plan.this_machine import driver_version
from nanochat.preflight.check import GREEN, RED, YELLOW, Finding
from nanochat.preflight.gpus import FIELDS, NoAnswer, query
from nanochat.preflight.settings import PreflightSettings

ROOT = Path(__file__).parents[2]
INSTALL = "pip install -c constraints.txt -e . in the active environment, or remove .venv and start the run script again"


def check(settings: PreflightSettings) -> list[Finding]:
    """Python and packages; where there is a GPU, whether torch can use it."""
    return [packages(), *cuda()]


def packages(root: Path = ROOT) -> Finding:
    """Every package that pyproject.toml asks for, and torch at the version of constraints.txt."""
    from packaging.requirements import Requirement

    seen = f"Python {platform.python_version()}, torch {_version('torch') or 'none'}"
    if nccl := [each for each in importlib.metadata.distributions() if (each.name or "").startswith("nvidia-nccl")]:
        seen += f", NCCL {nccl[0].version}"
    if not (root / "pyproject.toml").is_file():  # installed as a package, whose installer has seen to it
        return Finding("versions", GREEN, seen)
    wanted = [Requirement(line) for line in tomllib.loads((root / "pyproject.toml").read_text())["project"]["dependencies"]]
    wrong = []
    for each in wanted:
        version = _version(each.name)
        if (each.marker is None or each.marker.evaluate()) and not (version and each.specifier.contains(version, prereleases=True)):
            wrong.append(f"{each.name} {version}, not {each.specifier}" if version else f"{each.name} is missing")
    if wrong:  # some have a way round them, torch has none
        return Finding(
            "versions", RED if any(each.startswith("torch ") for each in wrong) else YELLOW, f"{seen}; {', '.join(wrong)}", INSTALL
        )
    pinned = [line.split("==")[1] for line in (root / "constraints.txt").read_text().splitlines() if line.startswith("torch==")]
    if pinned and _version("torch").split("+")[0] != pinned[0]:
        return Finding("versions", YELLOW, f"{seen}; tested with torch {pinned[0]}", INSTALL)
    return Finding("versions", GREEN, seen)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def cuda() -> list[Finding]:
    """The CUDA that torch is built for against what the driver knows; nothing where there is no GPU."""
    try:
        if not query("gpu", FIELDS[:1]):
            return []
    except NoAnswer:
        return []
    built, known, driver = cuda_of_torch(), cuda_of_driver(), driver_version()
    if built is None:
        return [
            Finding("driver", RED, "torch is built without CUDA, and there are GPUs", "install torch for CUDA: see pytorch.org/get-started")
        ]
    if known is None:
        advice = "install the driver's libraries; a container needs --gpus all"
        return [Finding("driver", RED, f"driver {driver}: its library libcuda.so.1 cannot be loaded", advice)]
    value = f"driver {driver} knows CUDA {known[0]}.{known[1]}, torch is built for {built}"
    if int(built.split(".")[0]) > known[0]:  # within a major version older drivers do
        return [Finding("driver", RED, value, "install a newer driver, or torch for an older CUDA")]
    return [Finding("driver", GREEN, value)]


def cuda_of_torch() -> str | None:
    """The CUDA that the installed torch is built for, without importing it; None for none."""
    found = importlib.util.find_spec("torch")
    if found is None or not found.origin:
        return None
    return runpy.run_path(str(Path(found.origin).with_name("version.py"))).get("cuda")


def cuda_of_driver() -> tuple[int, int] | None:
    """The newest CUDA that the driver knows, (major, minor); None where it does not say."""
    number = ctypes.c_int()
    try:
        status = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(number))
    except (OSError, AttributeError):
        return None
    return None if status or not number.value else (number.value // 1000, number.value % 1000 // 10)
