"""Sizes and FLOPs against the published table, and depths that cannot be."""

import pytest

from nanochat.common.errors import UserError
from nanochat.plan import sizes

TABLE = [  # depth, width, heads, parameters, training GFLOPs per token at sequence 2048 and vocabulary 65,536
    (12, 768, 6, 185_597_952, 1.038),
    (20, 1280, 10, 560_988_160, 3.492),
    (32, 2048, 16, 1_879_048_192, 12.080),
    (38, 2432, 19, 3_015_835_648, 19.410),
    (52, 3328, 26, 7_347_372_032, 47.029),
]


@pytest.mark.parametrize(("depth", "width", "heads", "parameters", "gflops"), TABLE)
def test_sizes_are_the_published_ones(depth: int, width: int, heads: int, parameters: int, gflops: float) -> None:
    assert (sizes.model_dim(depth), sizes.num_heads(depth), sizes.parameters(depth, 65_536)) == (width, heads, parameters)
    assert sizes.flops_per_token(depth, 65_536, 2048) / 1e9 == pytest.approx(gflops, abs=5e-4)


def test_which_depths_divide() -> None:
    odd = [depth for depth in range(1, 64, 2) if sizes.divides_evenly(depth)]
    assert odd == [1, 3, 7, 15, 31, 63]
    assert all(sizes.divides_evenly(depth) for depth in range(2, 65, 2))


@pytest.mark.parametrize(("depth", "nearest"), [(13, "12 and 14"), (5, "4 and 6"), (33, "32 and 34"), (0, "1 and 2"), (-1, "1 and 2")])
def test_a_depth_that_does_not_divide_names_the_nearest_two(depth: int, nearest: str) -> None:
    with pytest.raises(UserError, match=nearest):
        sizes.check_depth(depth)


def test_reading_a_prompt_costs_the_layers_forward_products_and_attention() -> None:
    d, layers, tokens = 768, 12, 1536
    products, attention = 2 * 12 * d * d * layers, 2 * 2 * layers * d * tokens
    assert sizes.reading_flops_per_token(12, 65_536, tokens) == products + attention
