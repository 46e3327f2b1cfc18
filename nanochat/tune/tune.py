"""`scripts.tune`: prove, measure, choose, and keep what was found."""

import json
import signal
import sys
import time
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from nanochat.common.console import say, warn
from nanochat.common.errors import UserError
from nanochat.common.locks import TakenError, locked
from nanochat.common.paths import base_dir, named_path
from nanochat.plan import batch, measurements
from nanochat.plan.hardware import GPUS, Gpu, cpu
from nanochat.plan.measurements import Measurement
from nanochat.plan.profile import UNFINISHED, Profile, machine_of, profile_of, profile_path, read_profile, write_profile
from nanochat.plan.recipe import proven_in
from nanochat.plan.sizes import Shape
from nanochat.plan.step import Job
from nanochat.plan.this_machine import driver_version, this_machine
from nanochat.tune import children
from nanochat.tune.search import Search
from nanochat.tune.settings import OFF, RECORDED_DEPTHS, RECORDED_RANKS, TuneSettings

ROCM = Path("/dev/kfd")  # is there where an AMD GPU's driver is
OTHERS_S = 1800.0  # that another tuner on this machine is waited for


def tune(settings: TuneSettings) -> None:
    """Tune this machine and write its profile. Raises UserError for a wrong request, and where no way at all works."""
    began = time.monotonic()
    settings.check()
    if settings.sent_in:
        _record(read_profile(named_path(settings.sent_in)).rows)
        return
    base_dir()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that what measures is ended too
    with redirect_stdout(sys.stderr if settings.json else sys.stdout):
        gpu = _gpu()
        path = profile_path(gpu)
        path.parent.mkdir(exist_ok=True)
        try:
            with locked(path.with_suffix(".lock"), OTHERS_S):
                profile = _profile(settings, gpu, began)
        except TakenError as taken:
            held = f"{path.with_suffix('.lock')}{taken.hint}"
            raise UserError(f"another scripts.tune has held {held} for half an hour; end it first") from None
    if settings.json:
        print(json.dumps(asdict(profile)))


def _gpu() -> Gpu:
    """This machine's, by nvidia-smi; where another maker's are, by what torch says of them, which takes seconds."""
    if found := this_machine():
        return found[1]
    if not ROCM.exists():
        return cpu(0.0)
    try:
        return gpu_of_facts(children.facts())
    except children.Broke as broke:
        raise UserError(f"the GPU could not be asked what it is: {broke}") from None


def gpu_of_facts(facts: dict[str, Any]) -> Gpu:
    """The GPU, or the CPU seen as one, of a proving process's facts."""
    return Gpu(**{**facts["gpu"], "device_names": tuple(facts["gpu"]["device_names"])})


def _record(rows: tuple[Measurement, ...]) -> None:
    """Add rows to the repository's table. Raises UserError for a kind of GPU that is not in the planner's."""
    for row in rows:
        measurements.record(row)
    say(f"recorded {len(rows)} rows in {measurements.TABLE}")


def _profile(settings: TuneSettings, gpu: Gpu, began: float) -> Profile:
    old = profile_of(gpu)
    depth = settings.depth if settings.depth != OFF else 38 if not gpu.is_cpu else 4
    if settings.once and old and old.driver == driver_version() and _has(old, settings, depth):
        say(f"tuned already: {profile_path(gpu)}, of {old.date}; python -m scripts.tune without --once tunes anew")
        return old
    return Tuning(settings, began, gpu, old if old and old.driver == driver_version() else None).run()


def _has(profile: Profile, settings: TuneSettings, depth: int) -> bool:
    wanted = profile.precision if settings.precision == "auto" else settings.precision
    return any((each.depth, each.seq_len, each.precision) == (depth, settings.max_seq_len, wanted) for each in profile.tuned)


@dataclass
class Tuning:
    """One tuning of this machine, from the proofs to the profile."""

    settings: TuneSettings
    began: float
    """By time.monotonic()."""
    gpu: Gpu
    """What it is done on."""
    old: Profile | None
    """What is known of it already, with the same driver: other sizes' results stay."""
    facts: dict[str, Any] = field(default_factory=dict)
    proofs: list[dict[str, Any]] = field(default_factory=list)
    searches: list[Search] = field(default_factory=list)

    def run(self) -> Profile:
        """All of it; writes the profile, and with --record the repository's table."""
        s = self.settings
        depths = [s.depth] if s.depth != OFF else []
        asked: list[str] = [] if s.precision == "auto" else ["bf16", "fp8"] if s.precision == "fp8" else [s.precision]
        say(f"proving, against float64 on this machine ({s.seconds / 60:g} minutes in all):")
        first = depths[0] if depths else RECORDED_DEPTHS[0] if not self.gpu.is_cpu else 4
        self.facts, self.proofs = children.proofs(first, s.max_seq_len, s.vocab_size, asked, s.quick)
        self._say_proofs()
        self.gpu = gpu = gpu_of_facts(self.facts)
        if s.record and gpu.name not in [each.name for each in GPUS]:
            raise UserError(f"--record: {gpu.name} is not in the planner's table of GPUs (nanochat/plan/hardware.py): add it there first")
        on_gpu = not gpu.is_cpu
        depths = depths or (list(RECORDED_DEPTHS) if s.record else [RECORDED_DEPTHS[0] if on_gpu else 4])
        world_size = s.world_size if s.world_size != OFF else RECORDED_RANKS if s.record else max(1, self.facts["gpus"])
        # So that what measures need not prove again. It has no driver: until all is done --once does not take it for done.
        write_profile(gpu, replace(self._profile(None), driver=UNFINISHED))
        sizes = [(depth, precision) for precision in asked or self.facts["precisions"] for depth in depths]
        for number, (depth, precision) in enumerate(sizes):
            left_s = self.began + s.seconds - time.monotonic()
            share_s = left_s / (len(sizes) - number)
            self._search(self._job(depth, precision, gpu, world_size, on_gpu), max(share_s, 1.0))
        if not any(search.best for search in self.searches):
            reasons = "; ".join(reason for search in self.searches for reason in search.struck)
            raise UserError(f"no way to make this step works here: {reasons}")
        profile = self._profile(self._links())
        path = write_profile(gpu, profile)
        self._say_result(profile)
        if s.record:
            _record(self._rows())
        say(f"kept in {path}: training, scripts.plan and the report go by it")
        return profile

    def _say_proofs(self) -> None:
        for proof in self.proofs:
            error = f"error {proof['error']:.1e} of {proof['tolerance']:g} allowed" if proof["error"] is not None else proof["note"]
            taken = f", {proof['milliseconds']:.2f} ms" if proof.get("milliseconds") else ""
            say(f"  {proof['precision']} {proof['name']}: {'right' if proof['passed'] else 'STRUCK OUT'}, {error}{taken}")
        if missing := self.facts["compiler_missing"]:
            say(f"  compile: left out, {missing}")

    def _job(self, depth: int, precision: str, gpu: Gpu, world_size: int, on_gpu: bool) -> Job:
        s = self.settings
        total, sequences = s.tokens(depth, world_size, on_gpu), s.sequences(depth, on_gpu)
        batch.micro_batches(total, s.max_seq_len, world_size, sequences)  # raises UserError where it does not divide
        return Job(
            shape=Shape(depth, s.vocab_size, s.max_seq_len),
            gpu=gpu if on_gpu else replace(gpu, memory_gib=gpu.memory_gib / world_size),
            world_size=world_size,
            shard_ranks=world_size,
            total_batch_size=total,
            device_batch_size=sequences,
            compute_bytes=4 if precision == "fp32" else 2,
            on_gpu=on_gpu,
            fp8=precision == "fp8",
        )

    def _search(self, job: Job, seconds: float) -> None:
        rank = f"one rank of {job.world_size}" if job.world_size > 1 else "one rank"
        say(f"measuring depth {job.shape.depth} in {job.precision}, {rank}, {job.total_batch_size:,} tokens a step:")
        search = Search(
            job,
            self.proofs,
            time.monotonic() + seconds,
            say,
            not self.facts["compiler_missing"],
            self.facts["cores"],
            self.settings.record,
        )
        earlier = next((each for each in self.searches if each.job.shape == job.shape and each.best), None)
        self.searches.append(search)
        if earlier and not job.on_gpu:  # of a CPU's precisions the faster is wanted, and the other need not be searched
            search.run_like(earlier)
        else:
            search.run(earlier.best[1] if earlier and earlier.best else None)
        if search.untried:
            say(f"  time is up; not tried: {', '.join(search.untried)}")

    def _links(self) -> dict[str, Any] | None:
        ranks = self.facts["gpus"]
        if ranks < 2:
            return None
        try:
            found = children.links(ranks)
        except children.Broke as broke:
            warn(f"the links between the GPUs could not be measured: {broke}")
            return None
        say(f"links: {found['bytes_per_s'] / 1e9:,.0f} GB/s reach each of {found['ranks']} GPUs in an all-gather")
        return found

    def _rows(self) -> tuple[Measurement, ...]:
        """What was measured now."""
        figures = [each for search in self.searches if search.best for each in search.kept_figures()]
        return tuple(measurements.row_of(each, measurements.today()) for each in figures)

    def _profile(self, links: dict[str, Any] | None) -> Profile:
        """The profile of what was found by now, and of other sizes what was known."""
        done = [search for search in self.searches if search.best]
        sizes = {(search.job.shape.depth, search.job.shape.seq_len, search.job.precision) for search in done}
        tuned = [search.tuned() for search in done]
        old = self.old
        others = [each for each in (old.tuned if old else ()) if (each.depth, each.seq_len, each.precision) not in sizes]
        other_rows = [row for row in (old.rows if old else ()) if (row.depth, row.seq_len, row.precision) not in sizes]
        figures = [each for each in (old.figures if old else ()) if (each["depth"], each["max_seq_len"], each["precision"]) not in sizes]
        return Profile(
            machine=machine_of(self.gpu),
            torch=self.facts["torch"],
            cuda=self.facts["cuda"],
            driver=driver_version(),
            date=measurements.today(),
            precision=self._auto_precision(),
            tuned=(*others, *tuned),
            rows=(*other_rows, *self._rows()),
            proofs=tuple(self._all_proofs()),
            figures=(*figures, *(search.final() for search in done)),
            struck=tuple(reason for search in self.searches for reason in search.struck),
            link_bytes_per_s=links["bytes_per_s"] if links else old.link_bytes_per_s if old else None,
            link_ranks=links["ranks"] if links else old.link_ranks if old else 1,
        )

    def _all_proofs(self) -> list[dict[str, Any]]:
        """Of this tuning; of what was not asked for now, those that were there. Autotuned layers prove as they are measured."""
        autotuned = {
            proven_in("compile", search.job.precision)
            for search in self.searches
            if any("compile=tuned" in each["recipe"] for each in search.figures)
        }
        proven = [
            {"name": "compile=tuned", "precision": each, "error": None, "tolerance": 0.0, "passed": True} for each in sorted(autotuned)
        ]
        proven = [*self.proofs, *proven]
        now = {(proof["precision"], proof["name"]) for proof in proven}
        return [*(proof for proof in (self.old.proofs if self.old else ()) if (proof["precision"], proof["name"]) not in now), *proven]

    def _auto_precision(self) -> str:
        """What --precision=auto is to be: bf16 on a GPU that has it; on a CPU the faster, once both were measured."""
        timed = [(search.final()["step_s"], search.job.precision) for search in self.searches if search.best and not search.job.fp8]
        if self.settings.precision != "auto" or self.facts["gpus"] or not timed:
            return self.old.precision if self.old else self.facts["precisions"][0]
        return min(timed)[1]

    def _say_result(self, profile: Profile) -> None:
        for search in self.searches:
            if not search.best:
                say(f"depth {search.job.shape.depth} in {search.job.precision}: no way works")
                continue
            final = search.final()
            first, last = search.figures[0]["step_s"], final["step_s"]
            mfu = f", {final['mfu']:.1%} MFU" if final["mfu"] is not None else ""
            say(
                f"depth {final['depth']} in {final['precision']}: {final['recipe']}; {final['grad_accum_steps']} × "
                f"{final['micro_batch_size']} sequences, recompute {final['recompute']}: {final['tok_per_s']:,.0f} tok/s{mfu}, "
                f"{first / last:.2f} times the first way tried"
            )
            cold_s, warm_s = final["cold_first_step_after_start_s"], final["first_step_after_start_s"]
            cold = f", {cold_s:.0f} s where nothing was compiled yet" if cold_s else ""
            warm = f"; first step {warm_s:.0f} s after the start{cold}" if warm_s else ""
            say(f"  the optimizer takes {final['optimizer_s'] / last:.1%} of it{warm}")
        if profile.precision == "fp32" and "bf16" in self.facts["precisions"]:
            say("--precision=auto will be fp32 here, which is faster")
