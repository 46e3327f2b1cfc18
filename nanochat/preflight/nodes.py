"""Several nodes: each looks itself over, the first one hears of all, and all end alike. They meet at their launcher's store."""

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from nanochat.preflight.check import GREEN, RED, YELLOW, Finding

CONNECT_S = 15.0
LINGER_S = 5.0  # the store ends with the first node's launcher


class Nodes:
    """The nodes of a job, as the first rank of one of them sees them."""

    def __init__(self) -> None:
        """Raises RuntimeError where the launcher's store cannot be reached."""
        environ = os.environ
        self.node, self.count = int(environ["GROUP_RANK"]), int(environ["GROUP_WORLD_SIZE"])
        self.ranks_a_node = int(environ["LOCAL_WORLD_SIZE"])
        patience = timedelta(seconds=CONNECT_S)
        server = dist.TCPStore(environ["MASTER_ADDR"], int(environ["MASTER_PORT"]), is_master=False, timeout=patience)
        self._store = dist.PrefixStore("preflight/nodes", server)

    def gather(self, report: dict[str, Any], seconds: float) -> list[dict[str, Any]]:
        """On the first node the reports of all, by node; of one that is silent for so long a finding that says so. Elsewhere none."""
        self._store.set(f"report{self.node}", json.dumps(report))
        if self.node:
            return []
        ends = time.monotonic() + seconds
        return [json.loads(self._heard(f"report{node}", ends) or self._silent(node, seconds)) for node in range(self.count)]

    @contextlib.contextmanager
    def shared(self, directory: Path) -> Iterator[Finding]:
        """Whether a file that the first node makes in a directory is there for this one; gone again at the end."""
        marker = ""
        if self.node == 0:
            with contextlib.suppress(OSError):  # which the check of the disk tells of
                descriptor, marker = tempfile.mkstemp(dir=directory, prefix=".preflight-")
                os.close(descriptor)
            self._store.set("marker", marker)
        else:
            marker = self._heard("marker", time.monotonic() + CONNECT_S) or ""
        value, advice = str(directory), ""
        status = GREEN if marker and (directory / Path(marker).name).exists() else RED if marker else YELLOW
        if status == RED:
            value = f"{directory} is not the first node's {Path(marker).parent}"
            advice = "set NANOCHAT_BASE_DIR to a directory on a disk that all nodes share"
        elif status == YELLOW:
            value = "not looked at: the first node could make no file"
        try:
            yield Finding("shared disk", status, value, advice)
        finally:
            if self.node == 0 and marker:
                Path(marker).unlink(missing_ok=True)

    def agree(self, verdict: str, seconds: float) -> str:
        """The first node's verdict, on every node. Raises RuntimeError where it is not heard in time."""
        if self.node:
            heard = self._heard("verdict", time.monotonic() + seconds)
            if heard is None:
                raise RuntimeError("the first node has not told what it found")
            self._store.set(f"heard{self.node}", "")
            return heard
        self._store.set("verdict", verdict)
        ends = time.monotonic() + LINGER_S
        for node in range(1, self.count):
            self._heard(f"heard{node}", ends)
        return verdict

    def _heard(self, key: str, ends: float) -> str | None:
        try:
            self._store.wait([key], timedelta(seconds=max(0.1, ends - time.monotonic())))
            return self._store.get(key).decode()
        except RuntimeError:  # of torch's: too late, or no longer there
            return None

    def _silent(self, node: int, seconds: float) -> str:
        value = f"has not reported in {seconds:.0f} s"
        finding = Finding("report", RED, value, "look at what it says itself", node * self.ranks_a_node)
        return json.dumps({"findings": [finding.to_json()], "figures": []})
