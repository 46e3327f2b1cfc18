"""`scripts.plan`: the planner's answer, for a person, a machine or a script."""

import json
from dataclasses import asdict, fields
from typing import Any

from nanochat.common.console import say
from nanochat.common.errors import UserError
from nanochat.plan.answer import EXAMPLE_NODE, Answer, Node, Planner, compare, node_of
from nanochat.plan.disk import check_disk
from nanochat.plan.hardware import Gpu
from nanochat.plan.memory import GIB
from nanochat.plan.settings import OFF, PlanSettings
from nanochat.plan.tables import Table, amount, count, show

MEMORY_NAMES = {
    "parameters": "parameters (shard of the float32 masters)",
    "gradients": "gradients (shard, float32)",
    "optimizer": "optimizer (shard)",
    "activations": "activations",
    "head": "head and loss, or a layer's backward pass",
    "communication": "communication (whole weights and gradients)",
    "reserve": "reserve (allocator, CUDA, NCCL)",
}


def plan(settings: PlanSettings) -> None:
    """Print the answer. Raises UserError for a wrong request, and with --check where the GPUs or the disk are too small."""
    if settings.write_docs:
        from nanochat.plan.documents import write_documents

        write_documents()
        return
    settings.validate()
    node = node_of(settings)
    if settings.compare:
        _print_comparison(settings, compare(settings, node), node)
        return
    planner = Planner(settings, node)
    answer = planner.answer()
    if settings.check:
        _check(settings, node, planner, answer)
    if settings.field:
        _print_field(answer.to_json(), settings.field)
    elif settings.json:
        print(json.dumps(answer.to_json(), indent=2))
    elif not settings.check:
        _print_tables(settings, node, planner, answer)


def _check(settings: PlanSettings, node: Node, planner: Planner, answer: Answer) -> None:
    if not answer.run.plan.fits and (node.is_this_machine or settings.gpus):
        raise UserError(planner.refusal(answer.run.plan))
    check_disk(answer.disk, settings.data, answer.run.plan.job.shape.depth)


def _print_field(values: dict[str, Any], name: str) -> None:
    if name not in values:
        raise UserError(f"--field={name}: no such value; there are {', '.join(values)}")
    value = values[name]
    print(value if isinstance(value, str) else json.dumps(value))


def _print_tables(settings: PlanSettings, node: Node, planner: Planner, answer: Answer) -> None:
    if not settings.gpus and not node.is_this_machine:
        say(f"this machine has no GPU that nvidia-smi knows of: planned for {EXAMPLE_NODE}; --gpus names another node\n")
    tables = [_step_table(answer), _memory_table(answer), _run_table(answer, settings.usd_per_gpu_hour != OFF), _disk_table(answer)]
    if settings.has_budget and settings.depth == OFF:
        tables.append(_neighbours_table(settings, planner, answer))
    show(tables)
    if not answer.run.plan.fits:
        say(f"\nit does not fit: {planner.refusal(answer.run.plan)}")


def _step_table(answer: Answer) -> Table:
    plan, job = answer.run.plan, answer.run.plan.job
    shape, time = job.shape, plan.time
    per_rank = f"{plan.grad_accum_steps} × {plan.micro_batch_size} sequences of {shape.seq_len:,} a GPU"
    where = f"{job.world_size} × {job.gpu.name}" + (f" ({answer.nodes} nodes)" if answer.nodes > 1 else "")
    kinds = ", ".join(f"{field.name} {getattr(time, field.name):.2f}" for field in fields(time))
    rows = [
        ("parameters", f"{shape.parameters:,}"),
        ("FLOPs per token", f"{shape.flops_per_token / 1e9:.2f} G"),
        ("a step", f"{job.total_batch_size:,} tokens: {per_rank}"),
        ("recomputed in the backward pass", plan.recompute_text),
        ("whole weights", "given up after the forward pass" if plan.reshard else "kept from forward to backward pass"),
        ("seconds of a step", f"{time.total:.2f}: {kinds}"),
        ("speed", f"{plan.tok_per_s:,.0f} tok/s, MFU {plan.mfu:.1%} ({plan.basis})"),
    ]
    return Table(f"depth {shape.depth} on {where}, {job.precision}", rows, last_is_words=True)


def _memory_table(answer: Answer) -> Table:
    plan = answer.run.plan
    room = plan.job.gpu.memory_gib
    rows = [(name, f"{getattr(plan.memory, key) / GIB:.1f}") for key, name in MEMORY_NAMES.items()]
    verdict = "fits, to spare below the margin" if plan.fits else "does not fit, short by"
    rows += [("peak", f"{plan.peak_gib:.1f}"), (verdict, f"{abs(plan.spare_gib):.1f}")]
    return Table(f"memory of a GPU, GiB of {room:.1f}", rows)


def _run_table(answer: Answer, overridden: bool) -> Table:
    run, loss = answer.run, answer.loss
    rows = [
        ("tokens", f"{count(run.tokens)} ({run.tokens_per_parameter:.1f} per parameter)"),
        ("steps", f"{run.steps:,}"),
        ("hours", f"{amount(run.hours)} ({run.plan.basis})"),
        ("dollars", _usd(answer, overridden)),
        ("validation bits per byte", f"{loss.bpb:.3f}, four times in five {loss.low:.3f} to {loss.high:.3f}"),
        ("by", loss.basis),
    ]
    return Table("the run", rows, last_is_words=True)


def _usd(answer: Answer, overridden: bool) -> str:
    run = answer.run
    if run.usd is None:
        return "no price is known; give --usd_per_gpu_hour"
    price = "" if overridden else ", a default that --usd_per_gpu_hour overrides"
    return f"{amount(run.usd)} ({run.plan.basis}) at ${run.usd_per_gpu_hour:.2f} a GPU an hour{price}"


def _disk_table(answer: Answer) -> Table:
    disk = answer.disk
    fetched = [("text", f"{answer.data}, which is not on the hub: nothing to fetch; how often it is seen follows from its length")]
    if disk.epochs is not None:
        fetched = [
            ("text shards to fetch", f"{disk.text_shards:,} of {answer.data}, and one for validation"),
            ("epochs over the source", f"{disk.epochs:.2f}"),
            ("text and token shards", f"{amount(disk.data_gb)} GB"),
        ]
    rows = [
        *fetched,
        ("checkpoints and model", f"{amount(disk.checkpoint_gb)} GB"),
        ("the same of the stages after it", f"{amount(disk.later_stages_gb)} GB"),
    ]
    return Table("disk", rows, last_is_words=True)


def _neighbours_table(settings: PlanSettings, planner: Planner, answer: Answer) -> Table:
    depth = answer.run.plan.job.shape.depth
    rows = [
        (
            f"{each.run.plan.job.shape.depth}" + (" <" if each.run.plan.job.shape.depth == depth else ""),
            count(each.run.plan.job.shape.parameters),
            count(each.run.tokens),
            f"{each.run.tokens_per_parameter:.1f}",
            "yes" if each.run.plan.fits else "no",
        )
        for each in planner.beside(depth)
    ]
    title = f"what the budget buys; at least {settings.target_param_data_ratio:g} tokens per parameter are wanted"
    return Table(title, rows, ("depth", "parameters", "tokens", "per parameter", "fits"))


KINDS = ("GPU", "GiB", "bf16", "fp8", "TB/s", "link", "GB/s", "$ an hour")
PLANS = ("GPU", "depth", "fits", "micro-batches", "recompute", "GiB used", "tok/s", "MFU", "hours", "$", "speed")


def _print_comparison(settings: PlanSettings, answers: list[Answer | tuple[Gpu, str]], node: Node) -> None:
    if settings.json:
        print(json.dumps([_compared(each) for each in answers], indent=2))
        return
    kinds, plans, notes = [], [], []
    for each in answers:
        if isinstance(each, Answer):
            kinds.append(_gpu_cells(each.run.plan.job.gpu, each.run.usd_per_gpu_hour))
            plans.append(_answer_cells(each))
        else:
            kinds.append(_gpu_cells(each[0], each[0].usd_per_hour))
            notes.append(f"{each[0].name}: {each[1]}")
    tables = [Table("kinds of GPU: peaks in dense TFLOP/s, links in one direction, prices to be overridden", kinds, KINDS)]
    if plans:
        title = f"{node.count * settings.nodes} of each, {settings.precision}"
        tables.append(Table(title, plans, PLANS, last_is_words=True))
    show(tables)
    for note in notes:
        say(note)


def _compared(each: Answer | tuple[Gpu, str]) -> dict[str, Any]:
    if isinstance(each, Answer):
        return {**each.to_json(), "kind": _facts(each.run.plan.job.gpu)}
    return {"gpu": each[0].name, "fits": False, "refused": each[1], "kind": _facts(each[0])}


def _facts(gpu: Gpu) -> dict[str, Any]:
    return {name: value for name, value in asdict(gpu).items() if name != "device_names"}


def _gpu_cells(gpu: Gpu, usd_per_hour: float) -> tuple[str, ...]:
    return (
        gpu.name,
        f"{gpu.memory_gib:.0f}",
        f"{gpu.peak_bf16_flops / 1e12:,.0f}",
        f"{gpu.peak_fp8_flops / 1e12:,.0f}" if gpu.peak_fp8_flops else "-",
        f"{gpu.bandwidth_bytes_per_s / 1e12:.2f}",
        gpu.link,
        f"{gpu.link_bytes_per_s / 1e9:.0f}",
        f"{usd_per_hour:.2f}" if usd_per_hour else "?",
    )


def _answer_cells(answer: Answer) -> tuple[str, ...]:
    run, plan = answer.run, answer.run.plan
    if not plan.fits:
        return plan.job.gpu.name, f"{plan.job.shape.depth}", "no", "-", "-", f"{plan.peak_gib:.1f}", "-", "-", "-", "-", plan.basis
    return (
        plan.job.gpu.name,
        f"{plan.job.shape.depth}",
        "yes",
        f"{plan.grad_accum_steps} × {plan.micro_batch_size}",
        plan.recompute_text,
        f"{plan.peak_gib:.1f}",
        f"{plan.tok_per_s:,.0f}",
        f"{plan.mfu:.1%}",
        amount(run.hours),
        amount(run.usd) if run.usd is not None else "?",
        plan.basis,
    )
