"""The fastest way to make one size's step: the likeliest first, then one change at a time, kept where it is faster."""

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from nanochat.plan.choose import StepPlan, ways
from nanochat.plan.recipe import PLAIN, Recipe
from nanochat.plan.step import Job
from nanochat.tune.children import Broke, measure

GAIN_GPU, GAIN_CPU = 0.004, 0.02  # of a step's time that a change must win: less is not told from noise
STEPS, WARMUP_S = 4, 3.0  # of a measurement on a GPU that other measurements keep warm
CPU_STEPS = 7
FULL_STEPS, FULL_WARMUP_S = 10, 8.0  # of one that is kept: by then a GPU is at its power limit
WITHIN = 1.15  # how many times the fastest one's time attention may take to be measured in the step
PLANS, PLANS_WITHIN = 4, 1.1  # plans that are measured, and how many times the fastest one's predicted time they may take
LONGEST_S = 400.0  # of one measurement
FIRST_GUESS_S = 60.0  # of one, before any was made

Way = tuple[StepPlan, Recipe]


@dataclass
class Search:
    """What was measured of one size in one precision, and the fastest of it."""

    job: Job
    proofs: list[dict[str, Any]]
    """Of all precisions."""
    deadline: float
    """By time.monotonic()."""
    tell: Callable[[str], None]
    """Says a line."""
    compiles: bool = True
    """Whether there is a compiler."""
    cores: int = 1
    """Processors, on a CPU."""
    from_nothing: bool = False
    """Whether the first measurement finds no compiled kernels: how long a first step then takes is wanted too."""
    figures: list[dict[str, Any]] = field(default_factory=list)
    """What the benchmark said of each way, the order of trying."""
    struck: list[str] = field(default_factory=list)
    """What failed in the step, and how."""
    untried: list[str] = field(default_factory=list)
    """What there was no time for."""
    best: Way | None = None
    best_s: float = float("inf")

    @property
    def _of_layers(self) -> str:
        return "bf16" if self.job.fp8 else self.job.precision

    def _proof(self, name: str) -> dict[str, Any] | None:
        precision = self.job.precision if name.startswith("fp8") else self._of_layers
        return next((each for each in self.proofs if (each["name"], each["precision"]) == (name, precision) and each["passed"]), None)

    def start(self, like: Recipe | None = None) -> Recipe:
        """The likeliest: kernels that an earlier search found, or else the fastest attention that is proven."""
        recipe = like or replace(PLAIN, attention=(self.attentions() or ["math"])[0])
        compiled = self.compiles and self._proof("compile=layers") and self._proof("head=compiled")
        return recipe if compiled else replace(recipe, compile="off")

    def attentions(self) -> list[str]:
        """Proven kernels of attention, the fastest first, without those that are much slower."""
        found = [each for each in self.proofs if each["precision"] == self._of_layers and each["passed"] and each.get("milliseconds")]
        timed = sorted((each["milliseconds"], each["name"].split("=")[1]) for each in found if each["name"].startswith("attention="))
        return [way for taken, way in timed if taken <= WITHIN * timed[0][0]]

    def _plans(self) -> list[StepPlan]:
        """What there is to choose from, the fastest predicted first; a rank that has all weights has none to give up."""
        return [plan for plan in ways(self.job) if not (plan.reshard and self.job.world_size == 1)]

    def try_way(self, plan: StepPlan, recipe: Recipe, what: str, full: bool = False) -> bool:
        """Measure one; whether it is the fastest so far. Says what came of it."""
        usual_s = max((each["took_s"] for each in self.figures), default=FIRST_GUESS_S)
        left_s = self.deadline - time.monotonic()
        needed_s = 2 * usual_s if self.job.on_gpu and not full else usual_s  # time is kept for the last one, in full
        if self.best and left_s < needed_s:
            self.untried.append(what)
            return False
        on_gpu = self.job.on_gpu
        steps, warmup_s = (FULL_STEPS, FULL_WARMUP_S) if full else (STEPS, WARMUP_S) if on_gpu else (CPU_STEPS, 0.0)
        try:
            patience_s = min(LONGEST_S, max(left_s, usual_s) + FIRST_GUESS_S)
            with tempfile.TemporaryDirectory() as empty:
                cache = empty if self.from_nothing and not self.figures else ""
                result = measure(plan, recipe, steps, warmup_s, patience_s, 0 if on_gpu else self.cores, cache)
        except Broke as broke:
            self.struck.append(f"{self.job.precision} {what}: {broke}")
            self.tell(f"  {what}: struck out, {broke}")
            return False
        self.figures.append(result)
        gain = GAIN_GPU if on_gpu else GAIN_CPU
        faster = result["step_s"] < self.best_s * (1 - gain if self.best else 1)
        mfu = f", {result['mfu']:.1%} MFU" if result["mfu"] is not None else ""
        verdict = "" if not self.best else " faster: kept" if faster else " not faster"
        self.tell(f"  {what}: {result['step_s']:.3f} s a step, {result['tok_per_s']:,.0f} tok/s{mfu}{verdict}")
        if faster:
            self.best, self.best_s = (plan, recipe), result["step_s"]
        return faster

    def run(self, like: Recipe | None = None) -> None:
        """Everything, as far as the time goes. Where nothing works `best` stays None."""
        plans = self._plans()
        if not plans:
            self.struck.append(f"{self.job.precision}: no way to make this step fits in the memory")
            return
        recipe = self.start(like)
        for plan in plans[:PLANS]:  # the next one only where memory or a kernel failed
            if self.try_way(plan, recipe, f"{_plan_text(plan)}, {recipe.text}"):
                break
        if not self.best:
            return
        for what, changed in self._kernels():
            self.try_way(self.best[0], changed(self.best[1]), what)
        for plan in plans[1:PLANS]:
            if plan.time.total <= PLANS_WITHIN * plans[0].time.total and plan != self.best[0]:
                self.try_way(plan, self.best[1], _plan_text(plan))
        if self.job.on_gpu and self.best[1].compile == "layers":
            self.try_way(self.best[0], replace(self.best[1], compile="tuned"), "compile=tuned")
        if self.job.on_gpu:
            self.try_way(*self.best, "the fastest, in full", full=True)

    def _kernels(self) -> Iterator[tuple[str, Callable[[Recipe], Recipe]]]:
        """Changes of kernels that are proven, the likeliest to win first."""
        changes = [("fp8_sums", "short")] if self.job.fp8 else []
        changes += [("muon", "gram"), *([("muon", "halves")] if self.job.on_gpu else [])]
        changes += [("attention", way) for way in self.attentions()]
        for what, way in changes:
            now = getattr(self.best[1], what) if self.best else way
            if now != way and self._proof(f"{what}={way}") and not (way == "halves" and now == "gram"):
                yield f"{what}={way}", lambda recipe, what=what, way=way: replace(recipe, **{what: way})  # type: ignore[misc]
        if not self.job.on_gpu and self.job.world_size == 1:
            for threads in sorted({self.cores, max(1, self.cores // 2)} - {0}, reverse=True)[1:]:
                yield f"threads={threads}", lambda recipe, threads=threads: replace(recipe, threads=threads)  # type: ignore[misc]

    def run_like(self, earlier: "Search") -> None:
        """One measurement, made as another precision's search has found it fastest, with this one's own attention."""
        assert earlier.best
        recipe = replace(earlier.best[1], attention=self.start().attention)
        plans = self._plans()
        plan = next((each for each in plans if _same_plan(each, earlier.best[0])), plans[0] if plans else None)
        if plan:
            self.try_way(plan, recipe, f"{_plan_text(plan)}, {recipe.text}")

    def final(self) -> dict[str, Any]:
        """What the benchmark said of the fastest way, the last time that it was measured."""
        assert self.best
        plan, recipe = self.best
        its = next(each for each in reversed(self.figures) if each["recipe"] == recipe.text and _is_of(each, plan))
        cold_s = self.figures[0]["first_step_after_start_s"] if self.from_nothing else None
        return its | {"cold_first_step_after_start_s": cold_s}

    def kept_figures(self) -> list[dict[str, Any]]:
        """Of each plan the fastest kernels' figures; of the winner those of its last measurement."""
        final, by_plan = self.final(), {}
        for each in sorted(self.figures, key=lambda each: -each["step_s"]):
            by_plan[each["micro_batch_size"], each["recompute"], each["reshard"]] = each
        by_plan[final["micro_batch_size"], final["recompute"], final["reshard"]] = final
        return list(by_plan.values())


def _same_plan(a: StepPlan, b: StepPlan) -> bool:
    return (a.micro_batch_size, a.recompute, a.reshard) == (b.micro_batch_size, b.recompute, b.reshard)


def _is_of(figure: dict[str, Any], plan: StepPlan) -> bool:
    same = (plan.micro_batch_size, plan.recompute_text, plan.reshard)
    return bool((figure["micro_batch_size"], figure["recompute"], figure["reshard"]) == same)


def _plan_text(plan: StepPlan) -> str:
    kept = "weights given up" if plan.reshard else "weights kept"
    return f"{plan.grad_accum_steps} × {plan.micro_batch_size} sequences, recompute {plan.recompute_text}, {kept}"
