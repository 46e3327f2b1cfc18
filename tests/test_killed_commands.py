"""Text, tokenizer and token shards when their maker is killed: before any change that it makes on disk, the same command ends well.

A hook in the process counts what it changes under the base directory, and kills it before the change of a given number.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import ROOT, Finished
from tests.data.hub_server import Hub, serve
from tests.data.test_hub_text import parquet

HOOK = """
import atexit, os, signal, sys
base, last, count = os.environ["NANOCHAT_BASE_DIR"], int(os.environ["KILL_BEFORE"]), 0
def hook(event, args):
    global count
    is_change = event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir")
    if event == "open":
        is_change = bool((args[2] or 0) & (os.O_WRONLY | os.O_RDWR))
    if is_change and isinstance(args[0], (str, bytes, os.PathLike)) and os.fsdecode(args[0]).startswith(base):
        count += 1
        if count == last:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
atexit.register(lambda: print(f"changes: {count}", file=sys.stderr))
"""
POINTS = 5  # of each command, spread evenly over its changes


@dataclass
class Workshop:
    """A place for hooks and text, and a hub."""

    place: Path
    hub: Hub

    def run(self, base: Path, command: list[str], kill_before: int = 0) -> Finished:
        """A command, killed before its change of that number; 0 for never."""
        environment = {
            **os.environ,
            "NANOCHAT_BASE_DIR": str(base),
            "KILL_BEFORE": str(kill_before),
            "PYTHONPATH": f"{self.place}{os.pathsep}{ROOT}",
            "HF_ENDPOINT": self.hub.endpoint,
            "HF_HUB_OFFLINE": "0",
            "NO_PROXY": "127.0.0.1",
        }
        return subprocess.run([sys.executable, "-m", *command], env=environment, capture_output=True, text=True, timeout=60)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    place = tmp_path_factory.mktemp("workshop")
    (place / "sitecustomize.py").write_text(HOOK)
    (place / "text").mkdir()
    for number in range(40):
        (place / f"text/{number}.txt").write_text(f"document {number} of many words, and of {number * 7919} others " * 20)
    with serve() as hub:
        for index in (0, 1, 6542):
            hub.files[f"shard_{index:05d}.parquet"] = parquet(*(f"{index} {number} of many words" for number in range(50)))
        yield Workshop(place, hub)


def files(base: Path) -> dict[str, bytes]:
    """All that is there but locks and what was verified."""
    kept = [path for path in base.rglob("*") if path.is_file() and path.suffix != ".lock" and path.parent.name != "verified"]
    return {str(path.relative_to(base)): path.read_bytes() for path in kept}


STAGES = {
    "files": ["scripts.dataset", "--data", "path:{text}"],
    "hub": ["scripts.dataset", "--num_shards", "2", "--num_workers", "1"],
    "tokenizer": ["scripts.tok_train", "--data", "path:{text}", "--vocab_size", "300"],
    "token shards": ["scripts.tok_encode", "--data", "path:{text}"],
}
BEFORE = {"tokenizer": ["files"], "token shards": ["files", "tokenizer"]}


@pytest.mark.parametrize("stage", STAGES)
def test_killed_before_any_change_the_same_command_ends_with_the_same_bytes(workshop: Workshop, tmp_path: Path, stage: str) -> None:
    commands = {name: [word.format(text=workshop.place / "text") for word in words] for name, words in STAGES.items()}
    begun = tmp_path / "begun"
    begun.mkdir()
    for each in BEFORE.get(stage, []):
        assert workshop.run(begun, commands[each]).returncode == 0

    def killed(number: int) -> tuple[Finished, Path]:
        base = tmp_path / f"killed-{number}"
        shutil.copytree(begun, base)
        return workshop.run(base, commands[stage], number), base

    finished, unbroken = killed(0)
    assert finished.returncode == 0, finished.stderr
    wanted = files(unbroken)
    changes = int(finished.stderr.split("changes: ")[1])
    assert changes > POINTS
    for number in {1 + point * (changes - 1) // (POINTS - 1) for point in range(POINTS)}:
        dead, base = killed(number)
        assert dead.returncode == -signal.SIGKILL, (number, dead.stderr)
        again = workshop.run(base, commands[stage])
        assert again.returncode == 0, (number, again.stderr)
        assert files(base) == wanted, (number, sorted(files(base)), sorted(wanted))
