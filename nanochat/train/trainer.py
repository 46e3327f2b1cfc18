"""The training loop that every stage shares."""

import resource
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from nanochat.common.console import say
from nanochat.common.errors import Stopped, UserError
from nanochat.data.loader import Batch, Split
from nanochat.model.gpt import GPT
from nanochat.optim.build import Optimizers
from nanochat.parallel.out_of_memory import is_out_of_memory
from nanochat.parallel.ranks import Ranks
from nanochat.parallel.sharding import clip_gradients, reshard
from nanochat.train.bad_steps import WINDOW, Guard, verdict
from nanochat.train.checkpoint import Checkpoints, RunState
from nanochat.train.hang_watch import LONGER, HangWatch
from nanochat.train.metrics import Metrics, StepLine
from nanochat.train.mirroring import Mirroring
from nanochat.train.plan_check import PlanCheck
from nanochat.train.step import accumulate_gradients
from nanochat.train.stopping import StopRequest

RECENT_STEPS = 20

T = TypeVar("T")
Batches = Callable[[Split, int], Iterator[Batch]]


@dataclass(frozen=True)
class Evaluation:
    """Something done to the model every so often, and at the end."""

    name: str
    """Key of its figure in metrics.jsonl; empty when it makes none."""
    every: int
    """Steps between; −1 for never."""
    run: Callable[[], dict[str, float]]
    """Does it, on every rank alike; returns its figures."""

    def due(self, step: int, num_iterations: int) -> bool:
        """Whether it is done after that many steps."""
        return self.every > 0 and (step % self.every == 0 or step == num_iterations)


def peak_memory_gib(device: torch.device) -> float:
    """Most memory this process has held: allocated on the GPU, or resident on a CPU; GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


@dataclass
class Trainer:
    """A model on its way from one state to the last step of its horizon."""

    ranks: Ranks
    model: GPT
    optimizers: Optimizers
    split: Split
    """How a step is divided; its micro-batch is halved when the allocator fails."""
    seq_len: int
    """Tokens of a sequence that are predicted, at most."""
    num_iterations: int
    """Steps of the whole run."""
    batches: Batches
    """Endless micro-batches, given the split and the number of the first sample."""
    evaluations: list[Evaluation]
    checkpoints: Checkpoints
    metrics: Metrics | None
    """None on all ranks but the first."""
    watch: HangWatch
    """Told of every sign of life."""
    guard: Guard
    """What is done about bad steps."""
    save_every: int
    grad_clip: float
    flops_per_token: float
    peak_flops: float | None
    """Of all GPUs together, FLOP/s; None where no peak is known."""
    usd_per_hour: float
    out_of_memory: Callable[[int, bool], Split]
    """Called with the number of the step that the allocator failed in (or that an evaluation followed), and whether it had begun to
    update the weights; returns the split to try again with, or does not return."""
    plan_check: PlanCheck | None
    """Holds the first steps against what was predicted; None where nothing was."""
    mirror: Mirroring | None = None
    """Copies checkpoints off the node; None on all ranks but the first, and where there is none."""
    figures: Callable[[], dict[str, float]] = dict
    """What a step's row has besides the usual, or instead of it."""
    _updating: bool = False
    _began: float = 0.0
    _recent_step_s: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT_STEPS))

    def run(self, state: RunState) -> None:
        """Train from `state` to the end, with evaluations and checkpoints on the way; it always says where the run stands.

        Raises Stopped after saving when a signal asked for it, UserError where it could not be saved or bad steps do not end.
        """
        stop = StopRequest()
        self._began = time.perf_counter() - state.elapsed_s
        self._evaluate(state, only_missing=True)
        split, batches = self.split, self.batches(self.split, state.samples)
        try:
            while state.step < self.num_iterations:
                first = self.guard.passed.end_of(state.samples, self.split.samples_per_step)
                if split != self.split or first != state.samples:
                    batches.close()  # type: ignore[attr-defined]
                    state.samples = first
                    split, batches = self.split, self.batches(self.split, state.samples)
                step = state.step
                stopping = self._within_memory(state.step + 1, partial(self._step, state, batches, stop))
                if stopping is None:
                    continue
                self._saved(state, self.checkpoints.poll)
                last = state.step == self.num_iterations
                if stopping or (state.step > step and (last or (self.save_every > 0 and state.step % self.save_every == 0))):
                    self._save(state)
                if last or stopping:  # weights are safe before anything else is done to them
                    self.watch.alive("saving", LONGER)
                    good = self._saved(state, self.checkpoints.wait)
                    if stopping and not last:
                        self._leave(state, good)
                if self.guard.wants_back(state):
                    batches.close()  # type: ignore[attr-defined]
                    self._roll_back(state)
                    split, batches = self.split, self.batches(self.split, state.samples)
                elif state.step > step:
                    self._evaluate(state)
        finally:
            batches.close()  # type: ignore[attr-defined]
            stop.close()

    def _within_memory(self, step: int, work: Callable[[], T]) -> T | None:
        """What `work` returns; None when the allocator failed in it and the micro-batch was halved: it is to be tried again."""
        try:
            return work()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Outside of the except clause, which keeps the failed step's tensors alive.
        self.split = self.out_of_memory(step, self._updating)
        return None

    def _step(self, state: RunState, batches: Iterator[Batch], stop: StopRequest) -> bool:
        """One optimizer step; returns whether any rank was asked to stop."""
        started = time.perf_counter()
        doing, times = f"step {state.step + 1}", 1.0 if self._recent_step_s else LONGER

        def alive(_phase: str) -> None:
            self.watch.alive(doing, times)

        alive("")
        loss, tokens = accumulate_gradients(self.model, batches, self.split, alive)
        grad_norm = clip_gradients(self.model, self.grad_clip)
        agreed = self.ranks.sum_(torch.stack((loss, torch.tensor(float(stop.asked), device=loss.device))))
        loss_value, stopping = agreed.tolist()
        wrong = verdict(loss_value, float(grad_norm), state.recent)
        if wrong:
            self.model.zero_grad(set_to_none=True)
            self.guard.skip(state, self.split.samples_per_step, wrong)
            return bool(stopping)
        lr_scale = 0.0
        if float(grad_norm) > 0:  # where nothing was to be learned, Muon's momentum would go on at its full length
            self._updating = True
            lr_scale = self.optimizers.step(state.step, self.num_iterations)
            self._updating = False
        self.model.zero_grad(set_to_none=True)
        if self.ranks.device.type == "cuda":
            torch.cuda.synchronize()

        step_s = time.perf_counter() - started
        state.step += 1
        state.samples += self.split.samples_per_step
        state.bad_in_a_row = 0
        state.recent = [*state.recent, [loss_value, float(grad_norm)]][-WINDOW:]
        state.elapsed_s = time.perf_counter() - self._began
        self._recent_step_s.append(step_s)
        if self.metrics:
            row = {
                "step": state.step,
                "loss": loss_value,
                "lr_scale": lr_scale,
                "grad_norm": float(grad_norm),
                "tok_per_sec": tokens / step_s,
                "mfu": tokens / step_s * self.flops_per_token / self.peak_flops if self.peak_flops else None,
                "mem_gib": peak_memory_gib(self.ranks.device),
                "tokens": state.samples * self.seq_len,
                "elapsed_s": state.elapsed_s,
                "step_s": step_s,
                **self.figures(),
            }
            self.metrics.log(row)
            line = StepLine(self.num_iterations, self.usd_per_hour).text(row, statistics.median(self._recent_step_s))
            self.metrics.show(line, state.elapsed_s, force=state.step in (1, self.num_iterations))
        if self.plan_check:
            self.plan_check.step(step_s)
        return bool(stopping)

    def _evaluate(self, state: RunState, only_missing: bool = False) -> None:
        """Run what is due; after a restart only what the stopped process had not come to."""
        for evaluation in self.evaluations:
            if not evaluation.due(state.step, self.num_iterations) or (only_missing and state.step == 0):
                continue
            if only_missing and self.ranks.from_first(lambda name=evaluation.name: self._recorded(name, state)):  # type: ignore[misc]
                continue
            self.watch.alive(f"the evaluation after step {state.step}", LONGER)
            while (figures := self._within_memory(state.step, evaluation.run)) is None:
                pass
            reshard(self.model)
            state.extra |= figures
            if self.metrics and figures:
                self.metrics.log({"step": state.step, "elapsed_s": state.elapsed_s, **figures})
                say(f"step {state.step}: " + ", ".join(f"{name} {value:.4f}" for name, value in figures.items()))

    def _recorded(self, name: str, state: RunState) -> bool:
        """Whether the stopped process had measured `name` after this very step; its figure is taken over."""
        assert self.metrics
        figures = [row[name] for row in self.metrics.rows if row["step"] == state.step and name in row]
        if figures:
            state.extra[name] = figures[-1]
        return bool(figures)

    def _roll_back(self, state: RunState) -> None:
        """Go back to the last checkpoint, and from there past the batches of the bad steps; the third time not."""
        if self.guard.has_gone_back_enough:
            batches = self.batches(self.split, state.samples - self.split.samples_per_step)
            self.watch.alive("the diagnosis", LONGER)
            try:
                self.guard.give_up(state, batches, self.split)
            finally:
                batches.close()  # type: ignore[attr-defined]
        self.watch.alive("going back", LONGER)
        self._saved(state, self.checkpoints.wait)
        self.guard.go_back(state, self.split.samples_per_step, self._newest)

    def _newest(self) -> RunState | None:
        return self.checkpoints.load(self.model, self.optimizers) if self.ranks.from_first(self.checkpoints.latest) else None

    def _save(self, state: RunState) -> None:
        self.watch.alive("saving", LONGER)
        self._saved(state, self.checkpoints.wait)
        self.checkpoints.save(state, self.model, self.optimizers)

    def _saved(self, state: RunState, ask: Callable[[], Path | None]) -> bool:
        """Say what has become of the checkpoint under way. One that failed is told of, and training goes on; False then."""
        try:
            path = ask()
        except OSError as error:
            at = f" at {error.filename}" if error.filename else ""
            text = f"step {state.step}: a checkpoint could not be saved ({error.strerror}{at}); training goes on, the last good one stays"
            if self.metrics:
                self.metrics.alert(state.step, text)
            return False
        if path:
            say(f"saved {path}")
        self._tell(state, self.mirror.alerts() if self.mirror else [])
        return True

    def await_mirror(self, state: RunState) -> None:
        """Wait until the mirror, where there is one, has what stands, or has been given up. Every rank calls it."""
        if self.mirror:
            self.mirror.end()
        ended = False
        while not ended:
            self.watch.alive("the mirror", LONGER)
            ended = self.ranks.from_first(lambda: self.mirror is None or self.mirror.ended())
        self._tell(state, self.mirror.alerts() if self.mirror else [])

    def _tell(self, state: RunState, alerts: list[str]) -> None:
        for text in alerts:
            assert self.metrics
            self.metrics.alert(state.step, text)

    def _leave(self, state: RunState, saved: bool) -> None:
        if not saved:
            raise UserError(f"stopped after step {state.step}, but not saved: the same command goes on from the checkpoint before")
        self.await_mirror(state)
        # At once: the first rank to end has the launcher end the others.
        say(f"stopped after step {state.step} and saved: the same command goes on from there")
        raise Stopped
