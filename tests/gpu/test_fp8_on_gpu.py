"""Products in fp8 on a GPU that has them: those of the rounded values, and a step of training that is near bf16's."""

import pytest
import torch

from nanochat.model.casts import GRADIENT, INPUT, cast_and_turned, cast_turned, in_eight_bits, relu_squared_gradient, turned
from nanochat.parallel.proofs import Size, prove
from nanochat.plan.hardware import FIRST_WITH_FP8
from tests.conftest import World

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < FIRST_WITH_FP8, reason="needs a GPU with fp8"
)


@pytest.mark.parametrize(
    "way", ["fp8_sums=long", "fp8_sums=short", "fp8_weights=kept", "fp8_scales=kept", "fp8_casts=fused", "fp8_mlp=fused"]
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


def test_training_in_fp8_follows_training_in_bf16(world: World) -> None:
    flags = "--flags=--depth=4 --max_seq_len=256 --device_batch_size=8 --total_batch_size=8192"
    found = world.run("scripts.compare_loss", ". --precision=bf16", ". --precision=fp8", flags, "--num_iterations=40", "--tolerance=0.1")
    assert found.returncode == 0, found.stdout + found.stderr
