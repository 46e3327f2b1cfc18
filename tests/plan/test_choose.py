"""What is chosen: against trying everything, against the guide's batches, and what is said when nothing fits."""

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.common.errors import UserError
from nanochat.plan.choose import StepPlan, best, choose
from nanochat.plan.hardware import GPUS, Gpu, cpu, parse_gpus
from nanochat.plan.memory import step_memory
from nanochat.plan.recompute import LEVELS, Recompute
from nanochat.plan.sizes import Shape
from nanochat.plan.step import Job, step_time

H100, H200 = parse_gpus("H100")[1], parse_gpus("H200")[1]
GUIDE = [(38, 48, 786_432, 0.55), (52, 24, 393_216, 0.53), (52, 20, 327_680, 0.5), (52, 16, 262_144, 0.5)]


def guide_job(depth: int, device_batch_size: int, total_batch_size: int) -> Job:
    return Job(Shape(depth), H100, 8, 8, total_batch_size, device_batch_size)


@pytest.mark.parametrize(("depth", "device_batch_size", "total", "mfu"), GUIDE)
def test_the_guides_batches_fit_on_80_gb(depth: int, device_batch_size: int, total: int, mfu: float) -> None:
    plan = choose(guide_job(depth, device_batch_size, total))
    assert plan.micro_batch_size * plan.grad_accum_steps * 8 * 2048 == total
    assert plan.micro_batch_size <= device_batch_size
    assert plan.reserved_gib < 76
    assert plan.peak_gib < 78
    assert plan.mfu >= mfu


@pytest.mark.parametrize(("depth", "device_batch_size", "total", "mfu"), GUIDE)
def test_more_memory_is_used_and_never_makes_it_slower(depth: int, device_batch_size: int, total: int, mfu: float) -> None:
    small = guide_job(depth, device_batch_size, total)
    large = replace(small, gpu=replace(H100, memory_gib=H200.memory_gib))
    assert choose(large).time.total < choose(small).time.total
    assert choose(replace(small, gpu=H200)).micro_batch_size > choose(small).micro_batch_size


@settings(max_examples=40, deadline=None)
@given(
    half_depth=st.integers(1, 6),
    memory_gib=st.floats(1.5, 12),
    sequences=st.sampled_from([1, 2, 6, 7, 12]),
    device_batch_size=st.integers(1, 12),
    ranks=st.integers(1, 4),
)
def test_the_choice_is_the_fastest_of_all_that_fit(
    half_depth: int, memory_gib: float, sequences: int, device_batch_size: int, ranks: int
) -> None:
    depth = 2 * half_depth
    job = Job(Shape(depth), replace(H100, memory_gib=memory_gib), ranks, ranks, sequences * ranks * 2048, device_batch_size)

    def fits(micro: int, recompute: Recompute, reshard: bool) -> bool:
        memory = step_memory(job.shape, micro, recompute, reshard, ranks, 2, accumulates=sequences > micro)
        return memory.peak <= 0.95 * memory_gib * 2**30 and memory.allocated * 1.03 < 0.93 * memory_gib * 2**30

    seconds = [
        step_time(job, micro, sequences // micro, Recompute(level, layers), reshard).total
        for micro in range(1, device_batch_size + 1)
        if sequences % micro == 0
        for level in range(len(LEVELS))
        for layers in (range(1, depth + 1) if level else [depth])
        for reshard in (False, True)
        if fits(micro, Recompute(level, layers), reshard)
    ]
    if seconds:
        assert choose(job).time.total == pytest.approx(min(seconds))
    else:
        with pytest.raises(UserError, match="nearest"):
            choose(job)


def test_what_is_given_is_kept() -> None:
    job = guide_job(38, 48, 786_432)
    plan = choose(job, micro_batch_size=6, recompute=Recompute(1, 5), reshard=True)
    assert (plan.micro_batch_size, plan.grad_accum_steps, plan.recompute_text, plan.reshard) == (6, 8, "mlp:5", True)
    assert choose(job, micro_batch_size=4).micro_batch_size == 4
    assert choose(job, recompute=Recompute(2, 38)).recompute_text == "block"
    assert choose(job, reshard=True).reshard
    assert choose(job, micro_batch_size=2).time.total > choose(job).time.total


def named(message: str, flag: str) -> str:
    match = re.search(rf"nearest that fits: .*?--{flag}=(\S+)", message)
    assert match, message
    return match[1]


def test_a_request_that_does_not_fit_names_what_is_short_and_the_nearest_that_does() -> None:
    job = guide_job(38, 48, 786_432)
    with pytest.raises(UserError) as refused:
        choose(job, micro_batch_size=24, recompute=Recompute(0, 38))
    message = str(refused.value)
    assert message.startswith("--micro_batch_size=24 --recompute=none needs ")
    short = re.search(r"needs (\S+) GiB of the 79\.1 that one GPU has, (\S+) more", message)
    assert short
    assert 79.1 * 0.93 < float(short[1]) - float(short[2]) < 79.1
    micro = int(named(message, "micro_batch_size"))
    assert choose(job, micro, Recompute(0, 38)).fits
    assert not any(best(job, size, Recompute(0, 38)).fits for size in (24, 48))
    recompute = Recompute.parse(named(message, "recompute"), 38)
    nearest = choose(job, 24, recompute)
    assert not best(job, 24, replace(recompute, layers=recompute.layers - 1), nearest.reshard).fits


def test_a_model_that_fits_nowhere_names_the_largest_that_does() -> None:
    job = replace(guide_job(52, 24, 393_216), gpu=parse_gpus("RTX 4090")[1], world_size=1, shard_ranks=1)
    with pytest.raises(UserError, match=r"depth 52 on 1 × RTX-4090 needs at least \d+\.\d GiB of the 23\.6") as refused:
        choose(job)
    depth = int(named(str(refused.value), "depth"))
    assert choose(replace(job, shape=Shape(depth))).fits
    assert not best(replace(job, shape=Shape(depth + 2))).fits
    assert "8 GPUs" in str(refused.value)


@pytest.mark.parametrize(("asked", "nearest"), [(7, "6 and 8"), (100, "48"), (32, "24 and 48")])
def test_a_micro_batch_that_does_not_divide_names_the_nearest_that_do(asked: int, nearest: str) -> None:
    with pytest.raises(UserError, match=rf"--micro_batch_size={asked}: .* 48 sequences .* divide are {nearest}$"):
        choose(guide_job(38, 48, 786_432), micro_batch_size=asked)


def test_a_total_that_does_not_divide_is_refused() -> None:
    with pytest.raises(UserError, match="--total_batch_size=1000"):
        choose(guide_job(38, 48, 1000))


@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: gpu.name)
@pytest.mark.parametrize("count", [1, 8])
def test_every_kind_has_an_answer_or_a_clear_refusal(gpu: Gpu, count: int) -> None:
    for depth, device_batch_size, total, _ in GUIDE:
        job = replace(guide_job(depth, device_batch_size, total), gpu=gpu, world_size=count, shard_ranks=count)
        plan = best(job)
        if plan.fits:
            assert choose(job) == plan
            assert plan.peak_gib <= 0.95 * gpu.memory_gib
            assert plan.reserved_gib <= 0.93 * gpu.memory_gib
            assert plan.estimated == (gpu.name != "H100-80GB")
        else:
            with pytest.raises(UserError, match=r"needs at least .* the nearest that fits: (--depth=\d+|\d GPUs)"):
                choose(job)


def test_a_cpu_takes_the_largest_micro_batch_that_its_memory_holds() -> None:
    job = Job(Shape(4, 4096, 512), cpu(8.0), 1, 1, 4096, 8, compute_bytes=4, on_gpu=False)
    plan = choose(job)
    assert (plan.micro_batch_size, plan.recompute_text) == (8, "none")
    tight = choose(replace(job, gpu=cpu(plan.peak_gib * 0.8)))
    assert tight.micro_batch_size < 8 or tight.recompute_text != "none"


def test_plans_of_equal_speed_recompute_the_least() -> None:
    plan: StepPlan = choose(guide_job(12, 32, 524_288))
    assert (plan.micro_batch_size, plan.recompute_text, plan.reshard) == (32, "none", False)
