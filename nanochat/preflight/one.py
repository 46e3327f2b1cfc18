"""One check in a process of its own, which may hang or break alone: `python -m nanochat.preflight.one NAME SETTINGS`, in JSON."""

import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from nanochat.common.processes import die_with_starter
from nanochat.preflight import clock, disks, gpus, limits, mirror, network, ports, speed, versions
from nanochat.preflight.check import Finding
from nanochat.preflight.settings import PreflightSettings

SPEED = "speed"
CHECKS: dict[str, Callable[[PreflightSettings], list[Finding]]] = {
    "GPUs": gpus.check,
    "disk": disks.check,
    "limits": limits.check,
    "hub": network.check_hub,
    "wandb": network.check_wandb,
    "mirror": mirror.check,
    "clock": clock.check,
    "ports": ports.check,
    "versions": versions.check,
}


def look(name: str, settings: PreflightSettings) -> dict[str, Any]:
    """What a check has found; of the speeds the figures of this node's ranks, which are judged with those of the others."""
    if name == SPEED:
        with tempfile.TemporaryDirectory(prefix="nanochat-preflight-") as directory:
            signal.signal(signal.SIGTERM, partial(_leave, directory))
            return {"figures": speed.measure(settings, Path(directory))}
    return {"findings": [finding.to_json() for finding in CHECKS[name](settings)]}


def _leave(directory: str, number: int, frame: FrameType | None) -> NoReturn:
    while os.path.exists(directory):  # ranks may still write to it
        shutil.rmtree(directory, ignore_errors=True)
    os._exit(128 + number)


if __name__ == "__main__":
    die_with_starter()
    print(json.dumps(look(sys.argv[1], PreflightSettings(**json.loads(sys.argv[2])))))
