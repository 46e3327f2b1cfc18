"""Steps that would ruin a model: skipped, counted, and where many come in a row gone back before and past."""

import math
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nanochat.common.errors import UserError
from nanochat.common.files import read_json, write_json

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
