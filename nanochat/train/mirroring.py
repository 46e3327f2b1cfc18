"""The process that copies a stage to its mirror while it trains: training neither waits nor dies for an address that fails."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

from nanochat.common.console import say
from nanochat.common.errors import UserError
from nanochat.common.files import remove
from nanochat.common.processes import die_at_once_with_starter
from nanochat.common.secrets import hide_in_output
from nanochat.train.checkpoint_directory import COPIED_FILE, LATEST_FILE, named
from nanochat.train.mirror import Mirror, one_line

ADDRESS = "CHECKPOINT_MIRROR"
LOOK_EVERY_S = 1.0
RETRY_S = (5.0, 15.0, 60.0, 300.0)
GIVE_UP_S = 60.0
"""Seconds of failing after which a copy is given up where the stage has ended."""
CLOSE_S = 3600.0
"""Seconds after which one that neither fails nor ends is given up there."""
BEHIND_S = 3600.0
"""Seconds without a copy of the newest checkpoint after which somebody should know of it."""
LOOK_AFTER_S = 60.0
TRAINING = 3
"""Descriptor, in the process that copies, of what training hears; 1 is whatever the address's library prints."""


class Mirroring:
    """Copies what comes to stand of a stage; it ends, at the latest, when this process does. Only the first rank makes one."""

    def __init__(self, stage: Path, url: str, keep_every: int):
        self._stage = stage
        self._command = [sys.executable, "-m", __name__, str(stage), str(keep_every), str(GIVE_UP_S), str(os.getpid())]
        self._environment = {**os.environ, ADDRESS: url}  # not a flag, which every user of the machine could read
        self._alerts = list[str]()
        self._copied, self._behind_since, self._looked = "", float("inf"), 0.0
        self._end_by, self._said_waiting = float("inf"), False
        self._start()

    def _start(self) -> None:
        # A session of its own: a signal is training's to answer.
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=self._environment, start_new_session=True
        )
        assert self._process.stdout
        os.set_blocking(self._process.stdout.fileno(), False)
        self._left, self._started, self._told_of_end = b"", time.monotonic(), False

    def alerts(self) -> list[str]:
        """What somebody should know of, since this was asked last; what went well is said. Returns at once."""
        self._listen()
        if self._end_by == float("inf"):
            if self._process.poll():
                self._start_again()
            elif time.monotonic() - self._looked > LOOK_AFTER_S:
                self._look_whether_behind()
        alerts, self._alerts = self._alerts, []
        return alerts

    def _listen(self) -> None:
        assert self._process.stdout
        with contextlib.suppress(BlockingIOError):
            while new := os.read(self._process.stdout.fileno(), 65536):
                self._left += new
        *lines, self._left = self._left.split(b"\n")
        for line in lines:
            kind, text = json.loads(line)
            if kind == "alert":
                self._alerts.append(text)
            elif kind == "copied":
                self._copied, self._behind_since = text, float("inf")
            else:
                say(text)

    def _start_again(self) -> None:
        """Whoever has ended the copying, it goes on; not more often than every few minutes."""
        if not self._told_of_end:
            self._told_of_end = True
            self._alerts.append(f"the process that copies to the mirror has ended ({self._process.returncode}); it is started again")
        if time.monotonic() - self._started > RETRY_S[-1]:
            self._start()

    def _look_whether_behind(self) -> None:
        now = self._looked = time.monotonic()
        if named(self._stage / "checkpoints", LATEST_FILE) == self._copied:
            self._behind_since = float("inf")
        elif self._behind_since == float("inf"):
            self._behind_since = now
        elif now - self._behind_since > BEHIND_S:
            text = f"the mirror has taken no checkpoint for {(now - self._behind_since) / 3600:.1f} h"
            self._alerts.append(f"{text}: the last that it took is {self._copied or 'none'}")
            self._behind_since = now

    def end(self) -> None:
        """Ask it to copy what has not been copied, and end."""
        if self._process.poll():
            self._start()
        assert self._process.stdin
        self._process.stdin.close()
        self._end_by = time.monotonic() + CLOSE_S

    def ended(self) -> bool:
        """Whether it has, as far as the address takes it; waits a second for it. What went wrong is then in `alerts`."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            if self._process.wait(LOOK_EVERY_S):
                self._alerts.append(f"the process that copies to the mirror has ended ({self._process.returncode}) before it was done")
        self._listen()
        if self._process.poll() is not None:
            return True
        if time.monotonic() > self._end_by:
            self.kill()
            self._alerts.append(f"the mirror has not taken the end of the stage within {CLOSE_S / 60:.0f} minutes, and is not waited for")
            return True
        if not self._said_waiting:
            self._said_waiting = True
            say("waiting for the mirror to have it all; another signal leaves at once, and scripts.mirror gives it the rest")
        return False

    def kill(self) -> None:
        """End it at once, if it has not ended."""
        self._process.kill()
        self._process.wait()


def _tell(kind: str, text: str) -> None:
    with contextlib.suppress(OSError):  # nobody reads it any more
        os.write(TRAINING, (json.dumps([kind, text]) + "\n").encode())


def _ended(wait_s: float) -> bool:
    """Whether training has closed its end, within that time."""
    return bool(select.select([0], [], [], wait_s)[0])


class _Copier:
    def __init__(self, stage: Path, url: str, keep_every: int, give_up_s: float):
        self.stage, self.keep_every, self.give_up_s = stage, keep_every, give_up_s
        self.mirror = Mirror(url, stage.parent)
        self.copied = ""
        self.failing_since: float | None = None
        self.failures = 0

    def newest(self) -> str:
        """Name of the newest checkpoint that stands; empty where there is none."""
        return named(self.stage / "checkpoints", LATEST_FILE)

    def copy(self, ended: bool) -> bool:
        """Copy what is not there yet; whether all went well."""
        name = self.newest()
        in_use = self.stage / "checkpoints" / COPIED_FILE
        try:
            if name and name != self.copied:
                self._keep(in_use, name)
                started = time.monotonic()
                self.mirror.put_checkpoint(self.stage / "checkpoints" / name, self.keep_every)
                self.copied = name
                _tell("copied", name)
                _tell("said", f"copied {name} to {self.mirror.url} in {time.monotonic() - started:.1f} s")
            if ended:
                self.mirror.put_models()
        except Exception as error:
            if name != self.newest() and not (self.stage / "checkpoints" / name).exists():
                return True  # a newer one stands, which comes next
            self._failed(error)
            return False
        finally:
            remove(in_use)
        if self.failing_since is not None:
            _tell("said", f"{self.mirror.url} takes copies again")
        self.failing_since, self.failures = None, 0
        return True

    def _keep(self, in_use: Path, name: str) -> None:
        with contextlib.suppress(OSError):  # a full disk: it may be removed while it is copied, and a newer one comes next
            in_use.write_text(name, encoding="utf-8")

    def _failed(self, error: Exception) -> None:
        if self.failing_since is None:
            self.failing_since = time.monotonic()
            _tell(
                "alert",
                f"the mirror {self.mirror.url} does not take what it is given ({one_line(error)}); training goes on, and it is tried again",
            )
        self.failures += 1

    def run(self) -> None:
        """Copy until training ends, then what is left."""
        ended = False
        while not ended:
            ended = _ended(RETRY_S[min(self.failures, len(RETRY_S)) - 1] if self.failures else LOOK_EVERY_S)
            if not ended:
                self.copy(ended=False)
        deadline = time.monotonic() + self.give_up_s
        while not self.copy(ended=True):
            if time.monotonic() > deadline:
                _tell("alert", f"the mirror {self.mirror.url} lacks the end of {self.stage.parent.name} {self.stage.name}")
                return
            time.sleep(RETRY_S[0])


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    os.dup2(1, TRAINING)
    os.dup2(2, 1)
    die_at_once_with_starter(int(sys.argv[4]))
    hide_in_output()
    try:
        _Copier(Path(sys.argv[1]), os.environ[ADDRESS], int(sys.argv[2]), float(sys.argv[3])).run()
    except UserError as error:
        _tell("alert", f"{error}; nothing is copied")
