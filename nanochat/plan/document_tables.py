"""What each table of the documents says; nanochat/plan/documents.py puts them in their places."""

import json
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from nanochat.common.markdown import block, table
from nanochat.plan import measurements
from nanochat.plan.answer import EXAMPLE_NODE, Answer, Planner, compare, node_of
from nanochat.plan.choose import StepPlan
from nanochat.plan.hardware import GPUS
from nanochat.plan.loss import forecast, read_fits, read_runs
from nanochat.plan.measurements import Measurement
from nanochat.plan.memory import GIB, step_memory
from nanochat.plan.rates import HELD_NORM_RATES
from nanochat.plan.recompute import LEVELS, Recompute
from nanochat.plan.settings import BATCHES, DEFAULT_BATCH, DEFAULT_RATIO, PlanSettings
from nanochat.plan.sizes import Shape, parameters
from nanochat.plan.step import predicted_of
from nanochat.plan.tables import amount, count

REHEARSAL = Path(__file__).parents[2] / "docs/rehearsal.json"
SIZES = {"3B": 38, "7B": 52}
"""Depths of the two models."""
LADDER_STEPS = 100
BUDGETS = ((20, 8), (20, 20), (38, 8), (38, 20), (52, 8), (52, 20))
"""Depths, and tokens a parameter."""
MICRO_BATCHES = {38: (1, 2, 4, 8, 12, 16, 24, 48), 52: (1, 2, 3, 4, 6, 8, 12, 24)}
NODES_OF = ("8xA100-80GB", "8xH100-80GB", "8xB200")


def planned(**settings: Any) -> Answer:
    """The planner's answer on eight H100, or on what the settings name."""
    whole = PlanSettings(**{"gpus": EXAMPLE_NODE, **settings})
    return Planner(whole, node_of(whole)).answer()


def usd(answer: Answer) -> str:
    """The dollars of a run, or a question mark where there is no price."""
    return amount(answer.run.usd) if answer.run.usd is not None else "?"


def bits_per_byte(answer: Answer) -> str:
    """The loss that a run can expect, with its range."""
    loss = answer.loss
    return f"{loss.bpb:.3f} ({loss.low:.3f} to {loss.high:.3f})"


def sizes() -> str:
    """What follows from the depth, of both models and three that others have published."""
    rows = []
    for depth in (12, 20, 32, 38, 52):
        shape = Shape(depth)
        name = next((name for name, each in SIZES.items() if each == depth), "")
        device, total = (f"{each:,}" for each in BATCHES.get(depth, DEFAULT_BATCH))
        tokens, room = count(DEFAULT_RATIO * shape.parameters), amount(planned(depth=depth).disk.total_gb)
        heads = f"{shape.num_heads} × {shape.model_dim // shape.num_heads}"
        numbers = (f"{shape.model_dim:,}", heads, f"{shape.parameters:,}", f"{shape.flops_per_token / 1e9:.3f} G")
        rows.append((name, depth, *numbers, device, total, tokens, room))
    header = ("", "`--depth`", "width", "heads", "parameters", "training FLOPs a token")
    return _with_code(table((*header, "`--device_batch_size`", "`--total_batch_size`", "tokens, 8 a parameter", "disk, GB"), rows))


def ladder() -> str:
    """What the last two rungs take: a hundred steps, and the run."""
    rows = []
    for name, depth in SIZES.items():
        for steps, what in ((LADDER_STEPS, f"{LADDER_STEPS} steps alone"), (-1, "base training")):
            for precision in ("bf16", "fp8"):
                answer = planned(depth=depth, num_iterations=steps, precision=precision)
                hours = answer.run.hours
                took = f"{60 * hours:.0f} min" if hours < 2 else f"{amount(hours)} h"
                rows.append((f"{name}, {what}, {precision}", count(answer.run.tokens), took, usd(answer), answer.run.plan.basis))
    return table(("", "tokens", f"time on {EXAMPLE_NODE}", "$", "speed"), rows)


def memory() -> str:
    """The peak of one GPU by kind of memory, as the planner chooses the step."""

    def cells(plan: StepPlan) -> dict[str, str]:
        kinds = {field.name: f"{getattr(plan.memory, field.name) / GIB:.1f}" for field in fields(plan.memory)}
        how = {"micro-batches × sequences": f"{plan.grad_accum_steps} × {plan.micro_batch_size}", "recomputed": plan.recompute_text}
        return {**how, **kinds, "**peak**": f"{plan.peak_gib:.1f}", "of": f"{plan.job.gpu.memory_gib:.1f}"}

    return _by_model("GiB", cells).replace(r"\*\*", "**")


def step() -> str:
    """Seconds of a step by kind of work."""

    def cells(plan: StepPlan) -> dict[str, str]:
        kinds = {field.name: f"{getattr(plan.time, field.name):.3f}" for field in fields(plan.time)}
        return {**kinds, "a step": f"{plan.time.total:.2f}", "tokens a second": f"{plan.tok_per_s:,.0f}", "MFU": f"{plan.mfu:.1%}"}

    return _by_model("seconds", cells)


def _by_model(unit: str, cells: Callable[[StepPlan], dict[str, str]]) -> str:
    """A column for each model and precision, a row for each of the cells that its plan has."""
    columns = {
        f"{name}, {precision}": cells(planned(depth=depth, precision=precision).run.plan)
        for precision in ("bf16", "fp8")
        for name, depth in SIZES.items()
    }
    kinds = next(iter(columns.values()))
    return table((unit, *columns), [(kind, *(column[kind] for column in columns.values())) for kind in kinds])


def batches() -> str:
    """Peak and speed at several micro-batches and kinds of GPU, with the least recomputing that fits."""
    rows = []
    for depth, sequences in MICRO_BATCHES.items():
        for size in sequences:
            cells: list[str] = []
            for gpus in NODES_OF:
                plan = planned(depth=depth, gpus=gpus, micro_batch_size=size).run.plan
                how = f"{plan.peak_gib:.1f} GiB, {plan.recompute_text}, {plan.mfu:.1%}"
                cells.append(how if plan.fits else f"does not fit ({plan.peak_gib:.0f} GiB)")
            rows.append((depth, size, *cells))
    return table(("depth", "sequences at once", *NODES_OF), rows)


def recompute() -> str:
    """What each level of recomputing takes and gives, at one micro-batch."""
    rows = []
    for depth, size in ((38, 8), (52, 4)):
        for name in LEVELS:
            plan = planned(depth=depth, micro_batch_size=size, recompute=name, reshard_after_forward="never").run.plan
            gib, again = plan.memory.activations / GIB, plan.time.recompute / plan.time.total
            rows.append((depth, size, name, f"{gib:.1f}", f"{plan.peak_gib:.1f}", f"{again:.1%}", f"{plan.mfu:.1%}"))
    return table(("depth", "sequences at once", "level", "activations, GiB", "peak, GiB", "time of it", "MFU"), rows)


def measured() -> str:
    """The measurement table beside what the sums say of the same steps."""
    rows = []
    for row in measurements.read():
        gpu = next(gpu for gpu in GPUS if gpu.name == row.gpu)
        sums = predicted_of(row, gpu).total
        step = f"{row.micro_batch_size} × {row.grad_accum_steps}, {row.recompute}" + (", weights given up" if row.reshard else "")
        mfu = f"{row.mfu:.1%}" if row.mfu is not None else "–"
        peak = f"{row.peak_allocated_gib:.1f}, {_peak_of(row)}"
        by = f"{row.date or 'no date kept'}, torch {row.torch}, CUDA {row.cuda}; {row.command or row.source}"
        speeds = (f"{row.step_s:.2f}, {sums:.2f}", f"{row.tok_per_s:,.0f}", mfu, peak)
        rows.append((f"{row.gpu}, depth {row.depth}, {row.precision}", step, *speeds, by))
    header = ("one rank of eight", "sequences × micro-batches, recomputed", "step, s: measured, by the sums", "tokens a second", "MFU")
    return table((*header, "peak allocated, GiB: measured, predicted", "when and how"), rows)


def _peak_of(row: Measurement) -> str:
    if row.source == "prototype":
        return "another program"  # its layers kept other tensors
    shape = Shape(row.depth, row.vocab_size, row.seq_len)
    memory = step_memory(
        shape, row.micro_batch_size, Recompute.parse(row.recompute, row.depth), row.reshard, row.world_size,
        4 if row.precision == "fp32" else 2, accumulates=row.grad_accum_steps > 1, fp8=row.precision == "fp8",
    )  # fmt: skip
    return f"{memory.allocated / GIB:.1f}"


def kinds() -> str:
    """Hours and dollars of both models on eight of each kind of GPU."""
    rows: dict[str, list[str]] = {}
    for depth in SIZES.values():
        for precision in ("bf16", "fp8"):
            settings = PlanSettings(depth=depth, gpus=EXAMPLE_NODE, precision=precision)
            for gpu, answer in zip(GPUS, compare(settings, node_of(settings)), strict=True):
                cells = rows.setdefault(gpu.name, [f"{gpu.memory_gib:.0f}", f"{gpu.usd_per_hour:.2f}"])
                cells.append(_hours(answer) if isinstance(answer, Answer) else "no fp8")
    header = ("8 ×", "GiB", "$ an hour, each", *(f"{name}, {precision}" for name in SIZES for precision in ("bf16", "fp8")))
    return table(header, [(gpu, *cells) for gpu, cells in rows.items()])


def _hours(answer: Answer) -> str:
    if not answer.run.plan.fits:
        return "does not fit"
    mark = " (est.)" if answer.run.plan.estimated else ""
    return f"{amount(answer.run.hours)} h, ${usd(answer)}{mark}"


def fewer_gpus() -> str:
    """Both models on one, two and four GPUs."""
    return table(("", "micro-batches", "recomputed", "peak, GiB", "hours", "$"), list(_fewer()))


def _fewer() -> Iterator[tuple[str, ...]]:
    for name, depth in SIZES.items():
        for gpus in ("1xH100-80GB", "2xH100-80GB", "4xH100-80GB", "8xH100-80GB", "1xH200", "1xB200", "8xRTX-4090"):
            answer = planned(depth=depth, gpus=gpus)
            plan = answer.run.plan
            if not plan.fits:
                yield (f"{name} on {gpus}", "–", "–", f"{plan.peak_gib:.0f} of {plan.job.gpu.memory_gib:.0f}", "does not fit", "–")
                continue
            how = (f"{plan.grad_accum_steps} × {plan.micro_batch_size}", plan.recompute_text, f"{plan.peak_gib:.1f}")
            yield (f"{name} on {gpus}", *how, amount(answer.run.hours), usd(answer))


def nodes() -> str:
    """Both models on several nodes."""
    rows = []
    for name, depth in SIZES.items():
        for number in (1, 2, 4):
            answer = planned(depth=depth, nodes=number)
            plan = answer.run.plan
            step_s = f"{plan.time.total:.2f}"
            communication = f"{plan.time.communication / plan.time.total:.1%}"
            rows.append((f"{name} on {number} × {EXAMPLE_NODE}", step_s, communication, amount(answer.run.hours), usd(answer)))
    return table(("", "step, s", "waiting for the network", "hours", "$"), rows)


def disk() -> str:
    """What a run reads and writes."""
    rows = []
    for name, depth in SIZES.items():
        for ratio in (8, 20):
            answer = planned(depth=depth, target_param_data_ratio=ratio)
            d = answer.disk
            sums = (d.text_gb, d.tokens_gb, d.one_checkpoint_gb, d.checkpoint_gb, d.later_stages_gb, d.total_gb)
            rows.append((f"{name}, {ratio} tokens a parameter", d.text_shards, f"{d.epochs or 0:.2f}", *map(amount, sums)))
    header = ("", "text shards", "of the source", "text, GB", "token shards, GB", "one checkpoint, GB", "checkpoints and model, GB")
    return table((*header, "the same of mid, sft, rl, GB", "in all, GB"), rows)


def budgets() -> str:
    """What a run of so many tokens a parameter takes and can expect."""
    rows = []
    for depth, ratio in BUDGETS:
        for precision in ("bf16", "fp8"):
            answer = planned(depth=depth, precision=precision, target_param_data_ratio=ratio, data="fineweb-edu")
            beyond = "yes" if answer.loss.is_extrapolation else "no"
            cells = (count(answer.run.tokens), precision, amount(answer.run.hours), usd(answer), bits_per_byte(answer), beyond)
            rows.append((str(depth), str(ratio), *cells))
    header = ("depth", "tokens a parameter", "tokens", "precision", f"hours on {EXAMPLE_NODE}", "$")
    return table((*header, "validation bits per byte", "extrapolated"), rows)


def rates() -> str:
    """The learning rates that base training makes of them with --scale_lr."""
    rows = []
    for depth, ratio in ((12, 8), *BUDGETS):
        run = planned(depth=depth, target_param_data_ratio=ratio, data="fineweb-edu").run
        width = run.plan.job.shape.model_dim
        peak = HELD_NORM_RATES.by_width_and_steps(width, run.steps)
        cells = (depth, ratio, width, f"{run.steps:,}")
        rows.append((*map(str, cells), f"{peak.matrices:.4f}", f"{peak.embedding:.3f}", f"{peak.head:.4f}"))
    return table(("depth", "tokens a parameter", "width", "steps", "matrices", "embedding", "head"), rows)


def loss_fit() -> str:
    """The fit, and how far the runs are from it."""
    fit = read_fits()["fineweb-edu"]
    e, a, alpha, b, beta = fit.best
    formula = f"{e:.3f} + {a:.3f} · (N / 10⁸)^−{alpha:.3f} + {b:.3f} · (D / 10⁹)^−{beta:.3f}"
    rows = []
    for run in read_runs():
        fitted = forecast(fit, parameters(run.depth, run.vocab_size), run.tokens).bpb
        rows.append((run.source, str(run.depth), count(run.tokens), f"{run.val_bpb:.4f}", f"{fitted / run.val_bpb - 1:+.2%}"))
    runs = table(("run", "depth", "tokens", "bits per byte", "the fit's difference"), rows)
    return f"bits per byte = {formula}, the runs around it ± {fit.spread:.2%}\n\n{runs}"


def rehearsal() -> str:
    """What a rehearsal took, what its model learned and says; `python -m tests.record_rehearsal` keeps it."""
    kept = json.loads(REHEARSAL.read_text(encoding="utf-8"))
    minutes, seconds = divmod(kept["took_s"], 60)
    took = (
        f"On {kept['date']} the rehearsal took {minutes} min {seconds} s on {kept['machine']}, from text to report, with the packages "
        f"already installed. Its model of {kept['parameters'] / 1e6:.1f} million parameters, trained on the documentation inside a Python "
        f"installation, needs {kept['val_bpb']:.2f} bits per byte of held-out text; `xz -9e` needs {kept['xz_bpb']:.2f}. Accuracy "
        "on held-out questions after each stage, beside the best constant answer:"
    )
    stages = ("base", "mid", "sft", "rl")
    rows = [
        (f"`{task}`", f"{kept['best_constant'][task]:.0%}", *(f"{shares[stage]:.0%}" for stage in stages))
        for task, shares in kept["accuracy"].items()
    ]
    scores = table(("", "constant", *stages), rows).replace(r"\`", "`")
    return f"{took}\n\n{scores}\n\nAnd this is what it says:\n\n{block(_spoken(kept['transcript']))}"


def _spoken(conversations: list[list[dict[str, Any]]]) -> str:
    """Conversations as lines, tool calls in brackets."""
    shown = {"text": "{}", "python": "[calculator: {}]", "python_output": "[= {}] "}
    lines = []
    for messages in conversations:
        for message in messages:
            content = message["content"]
            parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
            lines.append(f"{message['role']}: " + "".join(shown[part["type"]].format(part["text"]) for part in parts))
        lines.append("")
    return "\n".join(lines).strip()


def _with_code(text: str) -> str:
    """Names of flags in a table's header stay code."""
    header, rest = text.split("\n", 1)
    return header.replace(r"\`", "`").replace(r"\_", "_") + "\n" + rest
