"""The fastest way to make one size's step: the likeliest first, then one change at a time, kept where it is faster."""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from nanochat.plan.choose import StepPlan, ways
from nanochat.plan.profile import Tuned
from nanochat.plan.recipe import CHOICES, Recipe, proven_in
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
STEPS_OF_FIRST = 15  # that the first one makes and more, compiled or not

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

    def _proof(self, name: str) -> dict[str, Any] | None:
        precision = proven_in(name, self.job.precision)
        return next((each for each in self.proofs if (each["name"], each["precision"]) == (name, precision) and each["passed"]), None)

    def likeliest(self, like: Recipe | None = None) -> Iterator[Recipe]:
        """What to begin with: kernels that an earlier search found, or else the fastest attention that is proven; then others.

        The others are for where the first one fails in the step. Nothing where what every step needs is not proven.
        """
        muon = next((way for way in CHOICES["muon"] if self._proof(f"muon={way}")), None)
        sums = next((way for way in CHOICES["fp8_sums"] if not self.job.fp8 or self._proof(f"fp8_sums={way}")), None)
        compiled = self.compiles and self._proof("compile=layers") and self._proof("head=compiled")
        if muon is None or sums is None:
            return
        for attention in self.attentions(within=float("inf")):
            plain = Recipe(attention=attention, muon=muon, fp8_sums=sums, compile="layers" if compiled else "off")
            likely = replace(plain, **self._likely_kernels())
            if like:
                yield replace(likely, attention=like.attention, muon=like.muon, threads=like.threads)
                like = None
            yield likely
            if likely != plain:
                yield plain
            if compiled:
                yield replace(plain, compile="off")

    def _likely_kernels(self) -> dict[str, Any]:
        """Of what is proven: kernels of our own for Muon and the MLP, in fp8 for casts, and there a first micro-batch's scales for all."""
        likely = {"fp8_casts": "fused", "fp8_scales": "kept"} if self.job.fp8 else {"mlp": "fused"}
        likely |= {"muon": "gram"} if self.job.on_gpu else {}
        return {what: way for what, way in likely.items() if self._proof(f"{what}={way}")}

    def attentions(self, within: float = WITHIN) -> list[str]:
        """Proven kernels of attention, the fastest first, without those that are much slower."""
        found = [
            each
            for each in self.proofs
            if each["precision"] == proven_in("attention", self.job.precision) and each["passed"] and each.get("milliseconds")
        ]
        timed = sorted((each["milliseconds"], each["name"].split("=")[1]) for each in found if each["name"].startswith("attention="))
        return [way for taken, way in timed if taken <= within * timed[0][0]]

    def _plans(self) -> list[StepPlan]:
        """What there is to choose from, the fastest predicted first; a rank that has all weights has none to give up."""
        return [plan for plan in ways(self.job) if not (plan.reshard and self.job.world_size == 1)]

    def try_way(self, plan: StepPlan, recipe: Recipe, what: str, full: bool = False) -> bool:
        """Measure one; whether it is the fastest so far. Says what came of it."""
        on_gpu = self.job.on_gpu
        usual_s = statistics.median([each["took_s"] for each in self.figures] or [FIRST_GUESS_S])
        left_s = self.deadline - time.monotonic() - (usual_s if on_gpu and not full else 0)  # time is kept for the last one, in full
        if self.best and left_s < usual_s:
            self.untried.append(what)
            return False
        steps, warmup_s = (FULL_STEPS, FULL_WARMUP_S) if full else (STEPS, WARMUP_S) if on_gpu else (CPU_STEPS, 0.0)
        try:
            first_s = STEPS_OF_FIRST * plan.time.total * on_gpu + 2 * FIRST_GUESS_S
            patience_s = min(LONGEST_S, left_s + usual_s if self.best else max(left_s, first_s))
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
        verdict = "" if full or not self.best else " faster: kept" if faster else " not faster"
        self.tell(f"  {what}: {result['step_s']:.3f} s a step, {result['tok_per_s']:,.0f} tok/s{mfu}{verdict}")
        if faster and not full:
            self.best, self.best_s = (plan, recipe), result["step_s"]
        return faster

    def run(self, like: Recipe | None = None) -> None:
        """Everything, as far as the time goes. Where nothing works `best` stays None."""
        plans = self._plans()
        if not plans:
            self.struck.append(f"{self.job.precision}: no way to make this step fits in the memory")
            return
        # The first that works: the next plan where memory fails, other kernels where those do.
        likeliest = list(self.likeliest(like))
        if not likeliest:
            self.struck.append(f"{self.job.precision}: what every step needs is not right here")
        firsts = [(plan, likeliest[0]) for plan in plans[: PLANS if likeliest else 0]] + [(plans[0], recipe) for recipe in likeliest[1:]]
        for plan, recipe in firsts:
            if self.try_way(plan, recipe, f"{_plan_text(plan)}, {recipe.text}") or time.monotonic() > self.deadline + LONGEST_S:
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
        several = self.best is not None and self.best[0].grad_accum_steps > 1
        changes = []
        if self.job.fp8:
            knows_scales = self.best is not None and self.best[1].fp8_scales == "kept"
            kept = [*([("fp8_mlp", "fused")] if knows_scales else []), ("fp8_weights", "kept")] if several else []
            changes = [("fp8_sums", "short"), *kept, ("fp8_casts", "plain")]
        else:
            changes = [("mlp", "plain")]
        changes += [("muon", way) for way in (("plain", "halves") if self.job.on_gpu else ("gram",))]
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
        plans, own = self._plans(), next(self.likeliest(), None)
        plan = next((each for each in plans if _same_plan(each, earlier.best[0])), plans[0] if plans else None)
        if plan and own:
            recipe = replace(earlier.best[1], attention=own.attention)
            self.try_way(plan, recipe, f"{_plan_text(plan)}, {recipe.text}")

    def final(self) -> dict[str, Any]:
        """What the benchmark said of the fastest way, the last time that it was measured."""
        assert self.best
        plan, recipe = self.best
        its = next(each for each in reversed(self.figures) if each["recipe"] == recipe.text and _is_of(each, plan))
        cold_s = self.figures[0]["first_step_after_start_s"] if self.from_nothing else None
        return its | {"cold_first_step_after_start_s": cold_s}

    def tuned(self) -> Tuned:
        """The fastest way's kernels, as a profile has them."""
        assert self.best
        shape = self.job.shape
        return Tuned(shape.depth, shape.seq_len, self.job.precision, self.best[1], self.final()["tok_per_s"], len(self.figures))

    def kept_figures(self) -> list[dict[str, Any]]:
        """Of each plan the fastest kernels' figures; of the winner those of its last measurement."""
        final, by_plan = self.final(), {}
        slower = final["step_s"] / self.best_s  # at the power limit, which the others were not measured at
        for each in sorted(self.figures, key=lambda each: -each["step_s"]):
            mfu = each["mfu"] and each["mfu"] / slower
            at_limit = {"step_s": each["step_s"] * slower, "tok_per_s": each["tok_per_s"] / slower, "mfu": mfu}
            by_plan[each["micro_batch_size"], each["recompute"], each["reshard"]] = each | at_limit
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
