"""Products in fp8 on a GPU that has them: those of the rounded values, and a step of training that is near bf16's."""

import pytest
import torch

from nanochat.model.casts import (
    GRADIENT,
    INPUT,
    cast_and_turned,
    cast_turned,
    in_eight_bits,
    relu_squared_gradient,
    relu_squared_turned,
    turned,
)
from nanochat.model.fp8 import product
from nanochat.model.fp8_mlp import product_times_slope, relu_squared_of_product
from nanochat.optim.newton_schulz import has_copy_engine
from nanochat.parallel.proofs import Size, prove, relative_error
from nanochat.plan.hardware import FIRST_WITH_FP8
from tests.conftest import World

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < FIRST_WITH_FP8, reason="needs a GPU with fp8"
)


NEEDS_COPY_ENGINE = pytest.mark.skipif(
    not torch.cuda.is_available() or not has_copy_engine(torch.device("cuda", 0)), reason="needs a GPU with a copy engine"
)


@pytest.mark.parametrize(
    "way",
    [
        *("fp8_sums=long", "fp8_sums=short", "fp8_weights=kept", "fp8_scales=kept", "fp8_casts=fused"),
        pytest.param("fp8_mlp=fused", marks=NEEDS_COPY_ENGINE),
    ],
)
def test_every_way_is_right_at_true_sizes(way: str) -> None:
    proof = prove(way, "fp8", Size(torch.device("cuda", 0), 38, 2048, 65_536))
    assert proof.passed, proof


@pytest.mark.parametrize("shape", [(1000, 3000), (4096, 2432)])  # other code is made for sizes that divide by 16
def test_kernels_round_as_torch_does(shape: tuple[int, int]) -> None:
    x = torch.randn(*shape, generator=torch.Generator(device="cuda").manual_seed(1), device="cuda", dtype=torch.bfloat16)
    d_h, scale = x.flip(0), torch.tensor(0.013, device="cuda")
    for fused, plain in (
        (cast_and_turned([x, d_h], scale, GRADIENT, True), cast_and_turned([x, d_h], scale, GRADIENT, False)),
        (relu_squared_gradient(d_h, x, scale, scale, True), relu_squared_gradient(d_h, x, scale, scale, False)),
        ((cast_turned([x, d_h], scale, x, True),), (cast_turned([x, d_h], scale, x, False),)),
    ):
        for one, other in zip(fused, plain, strict=True):
            assert float((one.float() != other.float()).float().mean()) < 1e-3  # a quotient may be rounded otherwise
            torch.testing.assert_close(one.float(), other.float(), rtol=0.26, atol=0.1)
    eight = in_eight_bits(x, scale, INPUT)
    assert torch.equal(turned(eight, x, True).float(), eight.t().float())


@NEEDS_COPY_ENGINE
@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(("n", "k", "m"), [(4096, 2432, 9728), (1008, 208, 848), (16, 16, 32)])
def test_products_end_as_the_plain_way_does(n: int, k: int, m: int, fast: bool) -> None:
    generator = torch.Generator(device="cuda").manual_seed(1)
    x, g, weight = (torch.randn(*shape, generator=generator, device="cuda") for shape in ((n, k), (n, k), (m, k)))
    one, other, scale = (torch.tensor(value, device="cuda") for value in (0.01, 0.02, 0.5 * k**0.5))
    x8, w8, g8 = in_eight_bits(x, one, INPUT), in_eight_bits(weight, other, INPUT), in_eight_bits(g, one, GRADIENT)
    a, h8 = relu_squared_of_product(x8, one, w8, other, scale, torch.bfloat16)
    near(a, product(x8, one, w8, other, torch.bfloat16, fast=True), 0.01)
    near(h8, in_eight_bits(a.float().relu().square(), scale, INPUT), 0.001)
    near(relu_squared_turned(a, scale, fused=True), h8.t(), 0.001)
    rows, rows_turned = product_times_slope(g8, one, w8, other, a, scale, fast)
    d_h = product(g8, one, w8, other, torch.bfloat16, fast)
    near(rows, in_eight_bits(2 * a.float().relu() * d_h, scale, GRADIENT), 0.03)
    assert torch.equal(rows_turned.float(), rows.t().float())


def near(got: torch.Tensor, want: torch.Tensor, tolerance: float) -> None:
    assert relative_error(got, want) < tolerance


def test_training_in_fp8_follows_training_in_bf16(world: World) -> None:
    flags = "--flags=--depth=4 --max_seq_len=256 --device_batch_size=8 --total_batch_size=8192"
    found = world.run("scripts.compare_loss", ". --precision=bf16", ". --precision=fp8", flags, "--num_iterations=40", "--tolerance=0.1")
    assert found.returncode == 0, found.stdout + found.stderr
