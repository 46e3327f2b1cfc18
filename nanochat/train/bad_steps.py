"""Steps that would ruin a model: skipped, counted, and where many come in a row gone back before and past."""

import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from nanochat.common.console import warn
from nanochat.common.errors import UserError
from nanochat.common.files import read_json, write_json
from nanochat.data.loader import Batch, Split
from nanochat.parallel.ranks import Ranks
from nanochat.train.checkpoint import RunState
from nanochat.train.metrics import Metrics

WINDOW = 20
"""Good steps that a new one is held against."""
LOSS_JUMP = 3.0  # nats above the usual: worse by far than a hard batch
NORM_FACTOR = 50.0  # times the usual norm of the gradient
MOST_ROLLBACKS = 2


def verdict(loss: float, grad_norm: float, recent: list[list[float]]) -> str:
    """What is wrong with a step; empty where nothing is.

    loss: in nats; grad_norm: before clipping; recent: both of the last good steps, at most WINDOW.
    """
    if not math.isfinite(loss):
        return f"its loss is {loss}"
    if not math.isfinite(grad_norm):
        return f"the norm of its gradient is {grad_norm}"
    if len(recent) == WINDOW:
        usual = statistics.median(loss for loss, _ in recent)
        if loss > usual + LOSS_JUMP:
            return f"its loss is {loss:.3f}, lately {usual:.3f}"
        norms = [norm for _, norm in recent if norm > 0]
        if len(norms) > WINDOW // 2 and grad_norm > NORM_FACTOR * statistics.median(norms):
            return f"the norm of its gradient is {grad_norm:.3g}, lately {statistics.median(norms):.3g}"
    return ""


@dataclass
class PassedSamples:
    """The samples that a run has gone past after going back, kept in a file of its stage: no checkpoint of before them knows of them."""

    path: Path
    ranges: list[tuple[int, int]] = field(default_factory=list)
    """First sample, and the one after the last."""
    rollbacks: int = 0
    """How often the run has gone back since somebody last had a look at it."""

    @classmethod
    def read(cls, path: Path) -> "PassedSamples":
        """What the file says; nothing where there is none. Raises UserError when it is damaged."""
        if not path.is_file():
            return cls(path)
        try:
            kept = read_json(path)
            return cls(path, [(int(first), int(end)) for first, end in kept["ranges"]], int(kept["rollbacks"]))
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path} is damaged: remove it; the run then meets the batches again that it had gone past") from None

    def end_of(self, sample: int, count: int) -> int:
        """The first sample to take from `sample` on such that the `count` of a step are none of these."""
        for first, end in sorted(self.ranges):
            if sample < end and sample + count > first:
                sample = end
        return sample

    def add(self, first: int, end: int) -> "PassedSamples":
        """With one range more, written down; called on the first rank."""
        changed = PassedSamples(self.path, [*self.ranges, (first, end)], self.rollbacks + 1)
        changed.write()
        return changed

    def write(self) -> None:
        """Keep it."""
        value: dict[str, Any] = {"ranges": self.ranges, "rollbacks": self.rollbacks}
        write_json(self.path, value)


@dataclass
class Guard:
    """What is done about bad steps, on every rank alike."""

    ranks: Ranks
    metrics: Metrics | None
    """None on all ranks but the first."""
    passed: PassedSamples
    """Samples that are not taken."""
    diagnose: Callable[[Iterator[Batch], Split], dict[str, Any]]
    """Looks at a step that goes wrong."""
    max_bad_steps: int
    """Bad steps in a row before the run goes back to its last checkpoint."""

    def skip(self, state: RunState, samples_per_step: int, wrong: str) -> None:
        """Go past the samples of a step that has moved nothing."""
        first, end = state.samples, state.samples + samples_per_step
        state.samples = end
        state.bad_in_a_row += 1
        state.bad_steps += 1
        warn(f"step {state.step + 1} is skipped and taken with the next batch: {wrong} (samples {first:,} to {end - 1:,})")
        if self.metrics:
            self.metrics.log({"step": state.step, "bad_steps": state.bad_steps, "bad_samples": [first, end], "elapsed_s": state.elapsed_s})

    def wants_back(self, state: RunState) -> bool:
        """Whether too many have come in a row."""
        return state.bad_in_a_row >= self.max_bad_steps

    @property
    def has_gone_back_enough(self) -> bool:
        """Whether going back again would not help."""
        return self.passed.rollbacks >= MOST_ROLLBACKS

    def go_back(self, state: RunState, samples_per_step: int, load: Callable[[], RunState | None]) -> None:
        """Bring the run to what `load` returns, its last checkpoint or None, and from there past the batches of the bad steps."""
        first, end = _samples(state, samples_per_step)
        what = _told(state, first, end)
        self.passed = self.ranks.from_first(lambda: self.passed.add(first, end))
        there = "there is no checkpoint to go back to"
        if back := load():
            there = f"going back to the checkpoint of step {back.step}"
            # Time that was spent stays spent.
            vars(state).update(vars(replace(back, bad_steps=state.bad_steps, elapsed_s=state.elapsed_s)))
        state.bad_in_a_row = 0
        if self.metrics:
            self.metrics.alert(state.step, f"{what}: {there}, and on past them", back_to=state.step)

    def give_up(self, state: RunState, batches: Iterator[Batch], split: Split) -> NoReturn:
        """Look at the last bad step, whose batches these are, keep what is found in diagnosis.json, and raise UserError with it."""
        found = self.diagnose(batches, split)
        path = self.passed.path.with_name("diagnosis.json")

        def keep() -> None:
            write_json(path, {"step": state.step + 1, "samples": [state.samples - split.samples_per_step, state.samples], **found})
            replace(self.passed, rollbacks=0).write()

        self.ranks.from_first(keep)
        worst = found["rows"][0]
        row = f"a row beginning {worst['documents'][0][:80]!r} has a loss of {worst['loss']}"
        text = (
            f"{_told(state, *_samples(state, split.samples_per_step))}, and going back has not helped {MOST_ROLLBACKS} times: in the last "
            f"of them layer {found['worst_layer']} has the worst gradient, and {row}; all of it is in {path}. Lower the learning rates or "
            "--grad_clip, look at those documents, or suspect the hardware if other GPUs do not find the same; the same command goes on "
            "from the last checkpoint"
        )
        if self.metrics:
            self.metrics.alert(state.step, text)
        raise UserError(text)


def _samples(state: RunState, samples_per_step: int) -> tuple[int, int]:
    """The first sample of the bad steps in a row, and the one after the last."""
    return state.samples - state.bad_in_a_row * samples_per_step, state.samples


def _told(state: RunState, first: int, end: int) -> str:
    return f"{state.bad_in_a_row} bad steps in a row after step {state.step} (samples {first:,} to {end - 1:,})"
