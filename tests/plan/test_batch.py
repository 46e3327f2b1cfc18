"""The split of a step, and the length of a run."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.common.errors import UserError
from nanochat.plan.batch import micro_batches, num_iterations

GUIDE = [(786_432, 48), (393_216, 24), (327_680, 20), (262_144, 16)]


@pytest.mark.parametrize(("total", "device_batch_size"), GUIDE)
def test_the_guides_batches_are_one_pass_on_eight_ranks(total: int, device_batch_size: int) -> None:
    assert micro_batches(total, 2048, 8, device_batch_size) == (device_batch_size, 1)


@given(sequences=st.integers(1, 200), world_size=st.integers(1, 16), device_batch_size=st.integers(1, 64))
def test_the_split_is_exact_and_within_what_was_asked(sequences: int, world_size: int, device_batch_size: int) -> None:
    micro, accum = micro_batches(sequences * world_size * 128, 128, world_size, device_batch_size)
    assert micro * accum == sequences
    assert 1 <= micro <= device_batch_size


def test_a_total_that_does_not_divide_names_the_nearest_two() -> None:
    with pytest.raises(UserError, match="768 and 1024"):
        micro_batches(1000, 128, 2, 2)
    with pytest.raises(UserError, match="1024 and 2048"):
        micro_batches(100, 128, 8, 2)


def test_the_horizon_follows_iterations_then_flops_then_ratio() -> None:
    shape = {"depth": 38, "vocab_size": 65_536, "seq_len": 2048, "total_batch_size": 786_432}
    assert num_iterations(**shape, num_iterations=7, target_flops=1e20, target_param_data_ratio=8) == 7
    assert num_iterations(**shape, num_iterations=-1, target_flops=19.41e9 * 786_432 * 50, target_param_data_ratio=8) == 50
    tokens = 786_432 * num_iterations(**shape, num_iterations=-1, target_flops=-1, target_param_data_ratio=8)
    assert tokens == pytest.approx(8 * 3_015_835_648, rel=1e-4)
    with pytest.raises(UserError, match="--num_iterations"):
        num_iterations(**shape, num_iterations=-1, target_flops=-1, target_param_data_ratio=-1)
