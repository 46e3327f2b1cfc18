"""A driver's tool that plays what a machine's GPUs say, for tests without any."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

HEALTHY = {
    "name": "NVIDIA H100 80GB HBM3",
    "memory.total": "81559",
    "memory.free": "81007",
    "mig.mode.current": "Disabled",
    "ecc.errors.uncorrected.volatile.total": "0",
    "retired_pages.pending": "[N/A]",
    "clocks_event_reasons.active": "0x0000000000000001",
    "pcie.link.width.current": "16",
    "pcie.link.width.max": "16",
    "driver_version": "570.86.15",
    "remapped_rows.pending": "No",
    "remapped_rows.failure": "No",
}
SCRIPT = """#!{python}
import json, sys, time
asked = next(arg for arg in sys.argv[1:] if arg.startswith("--query-"))
kind, fields = asked.removeprefix("--query-").split("=")
told = json.load(open({told!r}))
print(kind, file=open({told!r} + ".asked", "a"))
time.sleep(told["hangs"])
if told["says"]:
    print(told["says"])
    sys.exit(told["status"])
for field in fields.split(","):
    if told[kind] and field not in told[kind][0]:
        print(f'Field "{{field}}" is not a valid field to query.')
        sys.exit(2)
for row in told[kind]:
    print(", ".join(row[field] for field in fields.split(",")))
"""

Machine = Callable[..., None]


def uuid(index: int) -> str:
    """Of the GPU of that number."""
    return f"GPU-{index}e8a6c2d-0000-4000-8000-00000000000{index}"


def install(directory: Path, gpus: Sequence[dict[str, str]], apps: Sequence[dict[str, str]], says: str, status: int, hangs: float) -> None:
    """Write an `nvidia-smi` into a directory."""
    rows = [{"index": str(i), "uuid": uuid(i), "gpu_uuid": uuid(i)} | HEALTHY | gpu for i, gpu in enumerate(gpus)]
    for row in rows:
        for gone in [key for key, value in row.items() if value == "unknown"]:
            del row[gone]
    told = {"gpu": rows, "remapped-rows": rows, "compute-apps": list(apps), "says": says, "status": status, "hangs": hangs}
    (directory / "told.json").write_text(json.dumps(told))
    script = directory / "nvidia-smi"
    script.write_text(SCRIPT.format(python=sys.executable, told=str(directory / "told.json")))
    script.chmod(0o755)


def make_machine(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """What puts GPUs into this test's machine."""

    def machine(
        gpus: Sequence[dict[str, str]] = (), apps: Sequence[dict[str, str]] = (), says: str = "", status: int = 0, hangs: float = 0
    ) -> None:
        install(directory, gpus, apps, says, status, hangs)
        monkeypatch.setenv("PATH", str(directory), prepend=":")

    return machine
