"""A small world for tests: text, a tokenizer and token shards under a base directory of their own."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest

from tests import warm

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it, and so would all that tests start
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # as nohup does
ROOT = Path(__file__).parents[1]
os.environ["NANOCHAT_BASE_DIR"] = str(
    Path(tempfile.gettempdir()) / f"nanochat-tests-{os.getuid()}" / "nothing"
)  # not this machine's profile
os.environ["NANOCHAT_DOWNLOAD_FIRST_WAIT_S"] = "0.01"  # nobody is far away
VOCAB_SIZE = 700

hypothesis.settings.register_profile("house", deadline=None, database=None)
hypothesis.settings.load_profile("house")

Finished = subprocess.CompletedProcess[str]


@dataclass(frozen=True)
class World:
    """A base directory, and commands that run in it."""

    base: Path
    """NANOCHAT_BASE_DIR."""

    def environment(self, **more: str) -> dict[str, str]:
        """The environment of a command."""
        kept = {k: v for k, v in os.environ.items() if k not in ("WANDB_RUN", "RANK", "WORLD_SIZE", "LOCAL_RANK")}
        return {**kept, "NANOCHAT_BASE_DIR": str(self.base), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **more}

    def arguments(self, module: str, *args: str, nproc: int = 0) -> list[str]:
        """The command line of a script, through torchrun for nproc processes."""
        if nproc:
            return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={nproc}", "-m", module, "--", *args]
        return [sys.executable, "-m", module, *args]

    def run(self, module: str, *args: str, nproc: int = 0, cwd: Path = ROOT, **environment: str) -> Finished:
        """Run a script to its end."""
        own = self.environment(**environment)
        if not nproc and warm.fits(own):
            return warm.run(module, list(args), cwd, own, timeout=300)
        command = self.arguments(module, *args, nproc=nproc)
        return subprocess.run(command, cwd=cwd, env=own, capture_output=True, text=True, timeout=300)

    def losses(self, tag: str) -> dict[int, float]:
        """Loss by step, from metrics.jsonl."""
        rows = [json.loads(line) for line in (self.base / "runs" / tag / "base/metrics.jsonl").read_text().splitlines()]
        return {row["step"]: row["loss"] for row in rows if "loss" in row}

    def copy(self, base: Path) -> "World":
        """The same files in another base directory, so that what is done in one is not seen in the other."""
        return World(shutil.copytree(self.base, base, symlinks=True))


def wrong_request(finished: Finished, *words: str) -> None:
    """Assert that a command ended as a wrong request does: status 2, one line, no traceback, and the words in it."""
    errors = [line for line in finished.stderr.splitlines() if not line.startswith("warning:")]
    assert finished.returncode == 2, finished.stderr
    assert len(errors) == 1, finished.stderr
    assert errors[0].startswith("error: "), finished.stderr
    for word in words:
        assert word in errors[0], f"{word!r} is not in {errors[0]!r}"


TINY = (
    "--depth=2",
    "--max_seq_len=64",
    "--device_batch_size=2",
    "--total_batch_size=512",
    "--precision=fp32",
    "--no-compile",
    "--eval_every=-1",
    "--sample_every=-1",
)


@pytest.fixture(scope="session")
def world_of_text(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A base directory with half a megabyte of text, a tokenizer of 700 entries and token shards; nobody writes to it."""
    from pydoc_data.topics import topics

    made = World(tmp_path_factory.mktemp("text") / "base dir")
    text = made.base / "my text"
    text.mkdir(parents=True)
    with (text / "topics.jsonl").open("w", encoding="utf-8") as file:
        for topic in topics.values():
            for paragraph in topic.split("\n\n\n"):
                file.write(json.dumps({"text": paragraph}) + "\n")
    for module, *args in (
        ("scripts.dataset", "--data", f"path:{text}"),
        ("scripts.tok_train", "--data", f"path:{text}", "--vocab_size", str(VOCAB_SIZE)),
        ("scripts.tok_encode",),
    ):
        finished = made.run(module, *args)
        assert finished.returncode == 0, finished.stderr
    return made


@pytest.fixture(scope="module")
def world(world_of_text: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    """Text, tokenizer and token shards in a base directory that the tests of one file have to themselves."""
    return world_of_text.copy(tmp_path_factory.mktemp("world") / "base dir")


@pytest.fixture(scope="session")
def run_of_thirty_steps(world_of_text: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a small base model, trained for 30 steps; nobody writes to it."""
    world = world_of_text.copy(tmp_path_factory.mktemp("trained") / "base dir")
    finished = world.run("scripts.base_train", *TINY, "--num_iterations=30", "--model_tag=trained", "--eval_every=15", "--eval_tokens=2048")
    assert finished.returncode == 0, finished.stderr
    return world.base / "runs/trained"


@pytest.fixture(scope="module")
def trained(world: World, run_of_thirty_steps: Path) -> Path:
    """The model directory of a small base model in the world of the tests of one file."""
    return shutil.copytree(run_of_thirty_steps, world.base / "runs/trained") / "base/model"
