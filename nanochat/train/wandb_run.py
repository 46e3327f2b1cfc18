"""wandb, in a process of its own that reads metrics.jsonl: whatever the service does, training neither waits nor dies for it."""

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from nanochat.common.console import warn
from nanochat.common.files import read_json
from nanochat.common.secrets import hide_in_output

INIT_S = "60"
RETRY_S = 300.0
LOOK_EVERY_S = 1.0
CLOSE_S = 60.0
ALERT = "alert"
"""The key of a row's text that is also sent as an alert."""


class WandbRun:
    """The process that sends a stage's rows to wandb; it ends, at the latest, when this one does."""

    def __init__(self, directory: Path, name: str, resume_step: int):
        """directory: the stage's, with its config.json and metrics.jsonl; rows after `resume_step` are sent, under the run's name."""
        self.directory = directory
        command = [sys.executable, "-m", __name__, str(directory), name, str(resume_step)]
        # A session of its own: a Ctrl-C is training's to answer.
        self._process = subprocess.Popen(
            command, env=_own_environment(), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
        )

    def close(self) -> None:
        """Let it send what is left; after a minute it is ended, and what wandb has written on disk can be sent later."""
        assert self._process.stdin
        self._process.stdin.close()
        try:
            self._process.wait(CLOSE_S)
        except subprocess.TimeoutExpired:
            warn(f"wandb has not taken everything; metrics.jsonl has it, `wandb sync {self.directory}/wandb/run-*` sends what it has kept")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # wandb's own helper too
            self._process.wait()


def _own_environment() -> dict[str, str]:
    """This process's environment without the address of a helper that wandb has started before: it may hold the run, or be gone."""
    return {key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"}


def _new_rows(path: Path, resume_step: int, wait_s: float) -> Iterator[dict[str, Any]]:
    """The rows of a metrics.jsonl as they come, until standard input ends; a line that is not finished is waited for."""
    left, going = b"", True
    with path.open("rb") as file:
        while True:
            text = file.read()
            *lines, left = (left + text).split(b"\n")
            for line in lines:
                try:
                    row = json.loads(line)
                except ValueError:
                    continue
                if isinstance(row, dict) and row.get("step", -1) > resume_step:
                    yield row
            if not going:
                return
            if not text:
                going = not select.select([sys.stdin], [], [], wait_s)[0]


def _again(**environment: str) -> NoReturn:
    """Begin anew in this process, as clean as it was: a run that could not be started leaves wandb with half of it."""
    os.execve(sys.executable, [sys.executable, "-m", "nanochat.train.wandb_run", *sys.argv[1:]], {**_own_environment(), **environment})


def _begin(directory: Path, name: str) -> Any:
    """The run, begun or taken up again. Raises whatever wandb does."""
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_INIT_TIMEOUT", INIT_S)
    import wandb

    kept = read_json(directory / "config.json")
    return wandb.init(
        project=os.environ.get("WANDB_PROJECT", "nanochat"),
        name=name,
        id=re.sub(r"[^\w.-]", "-", f"{directory.parent.name}-{directory.name}-{name}"),
        resume="allow",
        dir=str(directory),
        config={**kept["settings"], **kept["identity"]},
    )


def _send(directory: Path, name: str, resume_step: int) -> None:
    offline = os.environ.get("WANDB_MODE") == "offline"
    try:
        run = _begin(directory, name)
    except Exception as error:
        if offline:
            warn(f"wandb cannot keep the run on disk ({_first_line(error)}); metrics.jsonl has everything")
            return
        if "NANOCHAT_WANDB_TOLD" not in os.environ:
            warn(f"wandb could not be started ({_first_line(error)}); training goes on, another try every {RETRY_S / 60:.0f} minutes")
        ended = select.select([sys.stdin], [], [], RETRY_S)[0]
        _again(NANOCHAT_WANDB_TOLD="1", **({"WANDB_MODE": "offline"} if ended else {}))
    try:
        for row in _new_rows(directory / "metrics.jsonl", resume_step, LOOK_EVERY_S):
            if ALERT in row:
                run.alert(title=f"{directory.parent.name} {directory.name}, step {row['step']}", text=str(row[ALERT]))
            run.log({key: value for key, value in row.items() if key != ALERT}, step=row["step"])
        run.finish()
    except Exception as error:  # its helper process has died
        warn(f"wandb failed ({_first_line(error)}); it is started again")
        time.sleep(LOOK_EVERY_S)
        _again()
    if offline and "NANOCHAT_WANDB_TOLD" in os.environ:
        warn(f"wandb never answered; its run lies in {directory}/wandb, and `wandb sync {directory}/wandb/offline-run-*` sends it")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}"[:200] if lines else type(error).__name__


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    hide_in_output()
    _send(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
