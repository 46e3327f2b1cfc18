"""Whether two revisions, or two settings, train alike: the same few steps by each, step by step."""

import contextlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from nanochat.common.console import say
from nanochat.common.errors import UserError
from nanochat.common.files import remove
from nanochat.common.paths import base_dir

# In the process that trains, before anything else: kernels that add in the same order each time, where there are such.
DETERMINISTIC = """
import os, runpy
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
import torch
torch.use_deterministic_algorithms(True, warn_only=True)
runpy.run_module("scripts.base_train", run_name="__main__", alter_sys=True)
"""
QUIET = ("--eval_every=-1", "--sample_every=-1", "--core_metric_every=-1", "--save_every=-1")


@dataclass(frozen=True)
class CompareSettings:
    """Train the same steps twice and say whether the losses are identical, or where they part.

    Each side is a git revision, or `.` for the files as they are, and may have flags of base_train after it: `HEAD~1`,
    `". --precision=bf16"`, `"main --matrix_lr=0.03"`. Ends with 0 when they are alike and with 1 when they part.
    """

    a: tyro.conf.Positional[str]
    """One side: a revision, or `.`, and flags of its own."""
    b: tyro.conf.Positional[str]
    """The other side, of the same form."""
    flags: str = "--depth=2 --max_seq_len=128 --device_batch_size=4 --total_batch_size=1024 --precision=fp32"
    """Flags of base_train for both sides, in quotes, as in --flags="--depth=4 --seed=2"."""
    num_iterations: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 20
    """Steps that each side trains."""
    tolerance: float = 0.0
    """Difference of two losses, in nats, that still counts as alike."""

    def check(self) -> None:
        """Raises UserError for a value that means nothing."""
        if self.num_iterations < 1:
            raise UserError(f"--num_iterations={self.num_iterations}: must be 1 or more")
        if not self.tolerance >= 0:
            raise UserError(f"--tolerance={self.tolerance}: must be 0 or more")


@dataclass(frozen=True)
class Side:
    """A revision, and flags."""

    revision: str
    """`.` for the files as they are."""
    flags: list[str]

    @classmethod
    def parse(cls, text: str) -> "Side":
        """From the command line's words. Raises UserError where they are no side."""
        words = _words(text)
        if not words or words[0].startswith("-"):
            raise UserError(f"{text!r}: a git revision or . is expected first, as in '. {text}'")
        return cls(words[0], words[1:])


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UserError(f"{text!r}: {error}") from None


def compare_loss(s: CompareSettings) -> None:
    """Run both sides and compare. Raises UserError for a wrong request, SystemExit(1) where they part."""
    s.check()
    shared = _words(s.flags)
    sides = [Side.parse(text) for text in (s.a, s.b)]
    losses = [_losses(side, shared, s.num_iterations, name) for side, name in zip(sides, "ab", strict=True)]
    apart = [abs(a - b) for a, b in zip(*losses, strict=True)]
    first = next((step for step, difference in enumerate(apart, 1) if difference > s.tolerance), None)
    if not any(apart):
        say(f"identical: {len(apart)} losses, bit for bit; the last is {losses[0][-1]:.6f}")
        return
    largest = max(apart)
    summary = f"the largest difference is {largest:.3g} at step {apart.index(largest) + 1} of {len(apart)}"
    if first is None:
        say(f"alike within {s.tolerance:g}: {summary}")
        return
    say(f"they part at step {first}: {losses[0][first - 1]:.8f} and {losses[1][first - 1]:.8f}; {summary}")
    sys.exit(1)


def _losses(side: Side, flags: list[str], steps: int, name: str) -> list[float]:
    """The loss of each step of a side."""
    tag = f"compare-loss-{os.getpid()}-{name}"
    run = base_dir() / "runs" / tag
    with _files_of(side.revision) as root:
        command = [sys.executable, "-c", DETERMINISTIC, *flags, *side.flags, *QUIET, f"--num_iterations={steps}", f"--model_tag={tag}"]
        try:
            done = subprocess.run(command, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True)
            if done.returncode:
                said = (done.stderr.strip().splitlines() or ["nothing was said"])[-1].removeprefix("error: ")
                raise UserError(f"side {name} ({side.revision}) could not be trained: {said}")
            rows = [json.loads(line) for line in (run / "base/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        finally:
            remove(run)
    losses = [float(row["loss"]) for row in rows if "loss" in row]
    if len(losses) != steps:
        raise UserError(f"side {name} made {len(losses)} of {steps} steps")
    say(f"{name}: {' '.join([side.revision, *side.flags])}: loss {losses[0]:.6f} to {losses[-1]:.6f}")
    return losses


@contextlib.contextmanager
def _files_of(revision: str) -> Iterator[Path]:
    """The project's files at a revision, for as long as they are needed."""
    here = Path(__file__).parents[2]
    if revision == ".":
        yield here
        return
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary) / "files"
        _git(here, "worktree", "add", "--quiet", "--detach", str(root), revision)
        try:
            yield root
        finally:
            _git(here, "worktree", "remove", "--force", str(root))


def _git(here: Path, *words: str) -> None:
    try:
        done = subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True)
    except FileNotFoundError:
        raise UserError("git is not installed: only flags can be compared") from None
    if done.returncode:
        raise UserError(f"git {words[0]}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
