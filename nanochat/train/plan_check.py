"""A run's first steps, held against what the planner said of them."""

import statistics
from collections.abc import Callable

from nanochat.common.console import say, warn

STEPS = 50
WARM_UP = 5  # steps in which things are compiled and caches fill
SLOWER, MORE_MEMORY = 1.15, 1.08


class PlanCheck:
    """Says once, after 50 steps, how speed and memory compare with the plan, and where they part, what usually causes it."""

    def __init__(self, planned_step_s: float, planned_gib: float, peak_gib: Callable[[], float], basis: str):
        """basis: where the plan's speeds come from, in words."""
        self._planned_step_s, self._planned_gib, self._peak_gib, self._basis = planned_step_s, planned_gib, peak_gib, basis
        self._step_s: list[float] = []

    def step(self, step_s: float) -> None:
        """Note one step's time; the one that completes the fifty speaks."""
        self._step_s.append(step_s)
        if len(self._step_s) != STEPS:
            return
        usual_s, gib = statistics.median(self._step_s[WARM_UP:]), self._peak_gib()
        slowness, fullness = usual_s / self._planned_step_s, gib / self._planned_gib
        say(
            f"after {STEPS} steps: {usual_s:.2f} s a step, planned {self._planned_step_s:.2f} ({self._basis}); "
            f"{gib:.1f} GiB allocated at the peak, planned {self._planned_gib:.1f}"
        )
        if slowness > SLOWER:
            warn(
                f"steps take {slowness:.2f} times what was planned; the usual causes: a GPU below its power limit or too hot "
                "(nvidia-smi -q -d PERFORMANCE), another process on it, GPUs joined by PCIe instead of NVLink (nvidia-smi topo -m), "
                "too few CPU cores or a slow disk for the loader"
            )
        if fullness > MORE_MEMORY:
            warn(
                f"memory is {fullness:.2f} times what was planned; the usual causes: no compiler (see the line on compiling above), "
                "another version of torch, or attention without a fused kernel on this GPU"
            )
