"""The figures of the guide that this project was promised with, held against the sums and the measurements.

The guide was written for unmodified nanochat of autumn 2025, on GPUs of 187.5 GB that it calls H100.
"""

from dataclasses import dataclass

from nanochat.common.markdown import table
from nanochat.plan.answer import EXAMPLE_NODE, Answer
from nanochat.plan.document_tables import SIZES, bits_per_byte, planned, usd
from nanochat.plan.hardware import GPUS
from nanochat.plan.tables import amount, count

USD_PER_HOUR = 24.0
RANKS = 8


@dataclass(frozen=True)
class Promise:
    """What the guide says of one model."""

    hours: tuple[int, int]
    """Of the whole run on eight GPUs."""
    mfu: tuple[int, int]
    """Per cent."""
    tok_per_s: tuple[int, int]
    """Thousands of tokens a second."""
    disk_gb: int
    """Data and checkpoints."""
    memory_gb: tuple[int, int]
    """Of one GPU."""


GUIDE = {
    "3B": Promise((18, 22), (48, 52), (85, 95), 120, (140, 150)),
    "7B": Promise((70, 80), (46, 50), (75, 85), 180, (165, 175)),
}


def guide() -> str:
    """The guide's figures, what is so, and whether it was right."""
    rows: list[tuple[str, str, str, str]] = []
    for name, depth in SIZES.items():
        rows += _speed(name, planned(depth=depth), planned(depth=depth, precision="fp8"), GUIDE[name])
        rows += _room(name, planned(depth=depth), GUIDE[name])
    h100 = next(gpu for gpu in GPUS if gpu.name == "H100-80GB")
    b200 = next(gpu for gpu in GPUS if gpu.name == "B200")
    rows.append(
        (
            "the GPU",
            "8 × H100 of 187.5 GB",
            f"an H100 has {h100.memory_gib:.1f} GiB, a B200 {b200.memory_gib:.1f}: the guide's machine is eight B200",
            "wrong",
        )
    )
    eight = planned(depth=SIZES["3B"])
    fewest = {name: _fewest_gpus(depth) for name, depth in SIZES.items()}
    fewer = "; ".join(f"the {name} fits on {few}, where it takes {times:.1f} times as long" for name, (few, times) in fewest.items())
    rows.append(("fewer than 8 GPUs", "works, and takes proportionally longer", fewer, "right where it fits"))
    d32 = planned(depth=32)
    better = (
        f"expected {bits_per_byte(eight)} bits per byte on FineWeb-Edu against {bits_per_byte(d32)} of d32, both at 8 tokens a parameter"
    )
    rows.append(("quality of the 3B", "significantly better than d32", better, "better, by little"))
    budget = planned(depth=SIZES["7B"], usd=2000, usd_per_gpu_hour=USD_PER_HOUR / RANKS)
    buys = (
        f"$2,000 buy {count(budget.run.tokens)} tokens in bf16, {budget.run.tokens_per_parameter:.1f} a parameter: {bits_per_byte(budget)}"
    )
    same = planned(depth=SIZES["3B"], usd=2000, usd_per_gpu_hour=USD_PER_HOUR / RANKS)
    cheaper = f"; the 3B for as much {bits_per_byte(same)}"
    rows.append(("quality of the 7B", "state of the art below $2,000", buys + cheaper, "a 3B is better at that price"))
    rows.append(("code", "no changes required", "it runs out of memory on every H100 of 80 GB", "wrong"))
    return table(("", "the guide", f"on {EXAMPLE_NODE}, by the planner", "so it was"), rows, words=4)


def _fewest_gpus(depth: int) -> tuple[str, float]:
    """On how few H100 a model fits, and how much longer than on eight that takes."""
    eight = planned(depth=depth).run.hours
    runs = ((gpus, planned(depth=depth, gpus=gpus).run) for gpus in ("1xH100-80GB", "2xH100-80GB", "4xH100-80GB", EXAMPLE_NODE))
    return next((gpus, run.hours / eight) for gpus, run in runs if run.plan.fits)


def _speed(name: str, bf16: Answer, fp8: Answer, says: Promise) -> list[tuple[str, str, str, str]]:
    run, plan = bf16.run, bf16.run.plan
    low, high = says.hours
    at_guides_mfu = [share / 100 * RANKS * plan.job.gpu.peak_bf16_flops / plan.job.shape.flops_per_token / 1000 for share in says.mfu]
    within = [planned(depth=plan.job.shape.depth, hours=float(hours)).run for hours in says.hours]
    bought = " to ".join(f"{each.tokens_per_parameter:.1f}" for each in within)
    price = f"${usd(bf16)} in bf16, ${usd(fp8)} in fp8"
    time = f"{amount(run.hours)} h in bf16, {amount(fp8.run.hours)} h in fp8 for 8 tokens a parameter; {low} to {high} h buy {bought}"
    mfu = f"{plan.mfu:.1%} in bf16, {fp8.run.plan.mfu:.1%} in fp8 ({plan.basis})"
    speed = f"{plan.tok_per_s / 1000:,.0f} k; the guide's own MFU would be {at_guides_mfu[0]:,.0f} to {at_guides_mfu[1]:,.0f} k"
    dollars = " to ".join(f"${hours * USD_PER_HOUR:,.0f}" for hours in says.hours)
    return [
        (f"{name}: time", f"{low} to {high} h", time, _verdict(low, high, run.hours)),
        (f"{name}: cost", dollars, price, _verdict(low * USD_PER_HOUR, high * USD_PER_HOUR, run.usd or 0)),
        (f"{name}: MFU", f"{says.mfu[0]} to {says.mfu[1]} %", mfu, _verdict(*says.mfu, 100 * plan.mfu)),
        (
            f"{name}: tokens a second",
            f"{says.tok_per_s[0]} to {says.tok_per_s[1]} k",
            speed,
            _verdict(*says.tok_per_s, plan.tok_per_s / 1000),
        ),
    ]


def _room(name: str, answer: Answer, says: Promise) -> list[tuple[str, str, str, str]]:
    plan, disk = answer.run.plan, answer.disk
    low, high = says.memory_gb
    job = plan.job
    at_once = f"{job.device_batch_size} sequences are a step's sum for a GPU, {plan.micro_batch_size} are in memory at once"
    memory = f"{plan.peak_gib:.1f} GiB: {at_once}"
    parts = f"{amount(disk.data_gb)} text and tokens, {amount(disk.checkpoint_gb)} base training, the rest mid, sft and rl"
    return [
        (f"{name}: memory of a GPU", f"{low} to {high} GB", memory, _verdict(low, high, plan.peak_gib * 1.0737)),
        (
            f"{name}: disk",
            f"{says.disk_gb} GB",
            f"{amount(disk.total_gb)} GB: {parts}",
            _verdict(0, says.disk_gb, disk.total_gb),
        ),
    ]


def _verdict(low: float, high: float, true: float) -> str:
    if low <= true <= high:
        return "right"
    return f"too low: {true / high:.1f} times as much" if true > high else f"too high: {true / low:.1f} times as much"
