"""The machine, the versions and the revision that a report was made with."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path

from nanochat import __version__

PACKAGES = ("torch", "transformers", "datasets", "tiktoken", "numpy", "triton")


def _said(*command: str) -> str:
    """What a command prints; empty where it cannot be run or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True, cwd=Path(__file__).parent).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _processor() -> str:
    try:
        names = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        return names[0] if names else platform.machine()
    except OSError:
        return platform.processor() or platform.machine()


def facts() -> list[tuple[str, str]]:
    """Name and value of each fact."""
    gpus = _said("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader").splitlines()
    revision = _said("git", "rev-parse", "--short=12", "HEAD")
    changed = bool(_said("git", "status", "--porcelain", "--untracked-files=no"))
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = []
    for name in PACKAGES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return [
        ("processor", f"{_processor()}, {os.cpu_count()} cores"),
        ("memory", f"{memory_gib:.0f} GiB"),
        ("GPUs", "; ".join(f"{gpus.count(gpu)} × {gpu}" for gpu in dict.fromkeys(gpus)) if gpus else "none"),
        ("system", platform.platform()),
        ("python", sys.version.split()[0]),
        ("packages", ", ".join(versions)),
        (
            "nanochat",
            __version__ + (f", git {revision}{' with changes of its own' if changed else ''}" if revision else ", no git revision"),
        ),
    ]
