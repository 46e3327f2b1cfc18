"""Seconds of a step, against measurements and against bounds that any step keeps."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.plan import measurements
from nanochat.plan.choose import best
from nanochat.plan.hardware import GPUS, parse_gpus
from nanochat.plan.measurements import Measurement, read
from nanochat.plan.recompute import LEVELS, Recompute
from nanochat.plan.sizes import Shape, flops_per_token
from nanochat.plan.step import Job, calibration, computing_time, predicted_of, scaled, step_time, traffic_time

H100 = parse_gpus("H100")[1]
JOBS = st.builds(
    lambda depth, gpu, ranks, nodes: Job(Shape(2 * depth), gpu, ranks * nodes, ranks, 2048 * ranks * nodes * 24, 24),
    st.integers(1, 30),
    st.sampled_from(GPUS),
    st.integers(1, 8),
    st.integers(1, 3),
)


@pytest.mark.parametrize("row", measurements.read(), ids=lambda row: f"{row.gpu}-d{row.depth}-{row.micro_batch_size}-{row.source}")
def test_step_times_are_within_seven_percent_of_the_measured_ones(row: measurements.Measurement) -> None:
    _, gpu = parse_gpus(row.gpu)
    predicted = scaled(predicted_of(row, gpu), calibration(gpu, row.precision, row.depth)).total
    assert predicted == pytest.approx(row.step_s, rel=0.07)
    tokens = row.micro_batch_size * row.grad_accum_steps * row.seq_len
    assert row.tok_per_s == pytest.approx(tokens / row.step_s, rel=0.01)
    flops = flops_per_token(row.depth, row.vocab_size, row.seq_len)
    assert row.mfu == pytest.approx(row.tok_per_s * flops / gpu.peak_bf16_flops, rel=0.01)


@pytest.mark.parametrize(
    "row", [row for row in read() if row.gpu == "H100-80GB"], ids=lambda row: f"{row.source}-{row.precision}-d{row.depth}"
)
def test_the_sums_are_near_what_was_measured(row: Measurement) -> None:
    assert predicted_of(row, H100).total == pytest.approx(row.step_s, rel=0.04)


@given(JOBS, st.sampled_from([1, 2, 3, 4, 6, 8, 12, 24]), st.booleans())
def test_a_step_is_never_faster_than_the_peak_allows_and_recomputing_costs(job: Job, micro: int, reshard: bool) -> None:
    accum, depth = 24 // micro, job.shape.depth
    times = [computing_time(job, micro, accum, Recompute(level, depth), reshard).total for level in range(len(LEVELS))]
    assert times[0] < times[1] < times[2]
    assert times[0] < computing_time(job, micro, accum, Recompute(1, 1), reshard).total <= times[1]
    # The convention's count takes attention twice, so what must be done is less than it says.
    must_do = 24 * 2048 * (job.shape.flops_per_token - 6 * depth * job.shape.model_dim * 2048)
    assert times[0] > must_do / job.gpu.peak_bf16_flops
    given_up, kept = (computing_time(job, micro, accum, Recompute(0, depth), reshard).total for reshard in (True, False))
    assert given_up > kept


@given(JOBS, st.booleans())
def test_traffic_is_hidden_behind_computing_as_far_as_that_goes(job: Job, reshard: bool) -> None:
    none = Recompute(0, job.shape.depth)
    usual = step_time(job, 6, 4, none, reshard)
    assert 0 <= usual.communication <= traffic_time(job, 4, reshard) * (1 + 1e-9)
    slow = replace(job, gpu=replace(job.gpu, link_bytes_per_s=1e3), network_bytes_per_s=1e3)
    exposed = step_time(slow, 6, 4, none, reshard)
    assert exposed.total >= traffic_time(slow, 4, reshard) * (1 - 1e-9) or job.world_size == 1
    alone = replace(job, world_size=1, shard_ranks=1)
    assert step_time(alone, 6, 4, none, reshard).communication == 0


def test_traffic_by_hand() -> None:
    # d12 on eight H100: weights in bf16 twice and gradients in float32, seven eighths of each over 0.75 × 450 GB/s; then Muon's
    # momentum there and back, a rank's eighth of the matrices in bf16.
    job = Job(Shape(12), H100, 8, 8, 524_288, 32)
    parameters, matrices = 185_597_952, 12 * 768**2 * 12
    weights_and_gradients = parameters * (2 + 2 + 4) * 7 / 8 / 337.5e9
    muon = 2 * 2 * matrices / 8 * 7 / 8 / 337.5e9
    assert traffic_time(job, 3, True) == pytest.approx(3 * weights_and_gradients + muon)
    # On two nodes every rank sends and receives its shard of the gradients once, over 0.75 × 50 GB/s.
    two = replace(job, world_size=16)
    assert traffic_time(two, 3, True) - traffic_time(job, 3, True) == pytest.approx(3 * 4 * parameters / 8 / 37.5e9)


def test_a_kind_without_measurements_is_not_scaled() -> None:
    assert calibration(parse_gpus("B200")[1], "bf16", 38) == 1
    assert 0.9 < calibration(H100, "bf16", 38) < 1.1


def test_fp8_is_faster_where_it_is_and_keeps_both_norms_besides() -> None:
    for depth in (38, 52):
        job = Job(Shape(depth), H100, 8, 8, 2048 * 8 * 24, 6)
        bf16, fp8 = best(job), best(replace(job, fp8=True))
        assert (bf16.job.precision, fp8.job.precision) == ("bf16", "fp8")
        assert fp8.tok_per_s > 1.2 * bf16.tok_per_s
        same = [best(each, 4, Recompute(0, depth), True).memory.activations for each in (job, replace(job, fp8=True))]
        assert 1.09 < same[1] / same[0] < 1.1  # both norms in a byte beside ten in two
