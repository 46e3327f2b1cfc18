"""Products in fp8 on a GPU that has them: those of the rounded values, and a step of training that is near bf16's."""

import pytest
import torch

from nanochat.model.fp8 import GRADIENT, INPUT, Fp8Product
from nanochat.plan.hardware import FIRST_WITH_FP8
from tests.conftest import World
from tests.model.test_fp8 import rounded

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < FIRST_WITH_FP8, reason="needs a GPU with fp8"
)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_product_and_its_gradients_are_those_of_the_rounded_values(compiled: bool) -> None:
    generator = torch.Generator(device="cuda").manual_seed(1)
    x, weight, upstream = (
        torch.randn(*shape, generator=generator, device="cuda", dtype=torch.bfloat16)
        for shape in ((4096, 2432), (9728, 2432), (4096, 9728))
    )
    x.requires_grad_()
    weight.requires_grad_()
    product = torch.compile(Fp8Product.apply) if compiled else Fp8Product.apply
    y = product(x, weight)
    y.backward(upstream)
    x8, w8, g8 = (rounded(*each) for each in ((x.detach(), INPUT), (weight.detach(), INPUT), (upstream, GRADIENT)))
    for got, want in ((y, x8 @ w8.t()), (x.grad, g8 @ w8), (weight.grad, g8.t() @ x8)):
        assert got is not None
        assert float((got.double() - want).norm() / want.norm()) < 0.01


def test_training_in_fp8_follows_training_in_bf16(world: World) -> None:
    flags = "--flags=--depth=4 --max_seq_len=256 --device_batch_size=8 --total_batch_size=8192"
    found = world.run("scripts.compare_loss", ". --precision=bf16", ". --precision=fp8", flags, "--num_iterations=40", "--tolerance=0.1")
    assert found.returncode == 0, found.stdout + found.stderr
