"""Hours and dollars, both ways round."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.common.errors import UserError
from nanochat.plan.budget import Run, deepest, steps_within
from nanochat.plan.choose import StepPlan, best
from nanochat.plan.hardware import GPUS, Gpu, cpu, parse_gpus
from nanochat.plan.sizes import Shape
from nanochat.plan.step import Job

H100 = parse_gpus("H100")[1]


def plan_of(depth: int, count: int = 8) -> StepPlan:
    return best(Job(Shape(depth), H100, count, count, 524_288, 32))


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(GPUS), st.integers(1, 20), st.floats(1, 1e5), st.floats(0.1, 20))
def test_dollars_are_spent_but_never_overspent(gpu: Gpu, half_depth: int, usd: float, price: float) -> None:
    plan = best(Job(Shape(2 * half_depth), gpu, 8, 8, 524_288, 32))
    steps = steps_within(plan, hours=-1, usd=usd, usd_per_gpu_hour=price)
    run = Run(plan, steps, price)
    assert run.usd is not None
    assert run.usd <= usd * (1 + 1e-9)
    one_more = Run(plan, steps + 1, price).usd
    assert one_more is not None
    assert one_more > usd * (1 - 1e-9)


def test_hours_are_tokens_over_speed_with_evaluations_and_dollars_are_hours_times_price() -> None:
    plan = plan_of(20)
    run = Run(plan, 1000, 3.0)
    assert run.tokens == 524_288_000
    # Every 250 steps of 524,288 tokens, 20 × 524,288 held-out ones are read, at a third of the cost.
    assert run.hours == pytest.approx(run.tokens / plan.tok_per_s / 3600 * (1 + 20 / 3 / 250))
    assert run.hours == pytest.approx(1000 * plan.time.total / 3600 * (1 + 20 / 3 / 250))
    assert run.usd == pytest.approx(run.hours * 24)
    assert run.tokens_per_parameter == pytest.approx(524_288_000 / 560_988_160)


def test_the_tighter_of_two_limits_counts() -> None:
    plan = plan_of(20)
    hour, day = steps_within(plan, 1, -1, 3.0), steps_within(plan, 24, -1, 3.0)
    assert day == pytest.approx(24 * hour, abs=24)
    assert steps_within(plan, 24, 24.0, 3.0) == hour
    assert steps_within(plan, 1, 24.0 * 24, 3.0) == hour


def test_limits_that_say_nothing_are_refused() -> None:
    plan = plan_of(20)
    with pytest.raises(UserError, match="--usd_per_gpu_hour"):
        steps_within(plan, -1, 100, 0.0)
    with pytest.raises(UserError, match="neither"):
        steps_within(plan, -1, -1, 3.0)
    on_cpu = best(replace(plan.job, gpu=cpu(64.0), on_gpu=False))
    with pytest.raises(UserError, match="--num_iterations"):
        steps_within(on_cpu, 1, -1, 3.0)


@pytest.mark.parametrize(("hours", "count"), [(0.01, 8), (1, 8), (20, 8), (20, 1), (500, 8), (1e6, 1)])
def test_the_deepest_model_is_what_trying_every_depth_finds(hours: float, count: int) -> None:
    def run_at(depth: int) -> Run:
        plan = plan_of(depth, count)
        return Run(plan, steps_within(plan, hours, -1, 3.0), 3.0)

    enough = [depth for depth in range(2, 129, 2) if run_at(depth).plan.fits and run_at(depth).tokens_per_parameter >= 8]
    assert deepest(run_at, 8) == max(enough, default=0)
