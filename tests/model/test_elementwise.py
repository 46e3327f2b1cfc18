"""The element-wise parts of a layer against autograd's own way with their formulas, in float64 and in bf16, compiled too."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from nanochat.model.elementwise import norm, relu_squared, rms_norm, rotate, rotated_norm

ANGLES = torch.outer(torch.arange(6, dtype=torch.float64), torch.logspace(0, -3, 4, dtype=torch.float64))
COS, SIN = ANGLES.cos(), ANGLES.sin()
POSITIONS = torch.tensor([[0, 1, 2, 3, 4, 5], [3, 4, 5, 0, 1, 2]])
OF_ROWS = COS[POSITIONS], SIN[POSITIONS]

Part = Callable[[Tensor], Tensor]
PARTS: dict[str, tuple[Part, Part]] = {
    "norm": (lambda x: norm(x, 1e-6), lambda x: rms_norm(x, 1e-6)),
    "norm of small values": (lambda x: norm(1e-3 * x, 1e-6), lambda x: rms_norm(1e-3 * x, 1e-6)),
    "rotated norm": (lambda x: rotated_norm(x, COS, SIN, 1e-6), lambda x: rms_norm(rotate(x, COS, SIN), 1e-6)),
    "rotated norm, positions of each row": (
        lambda x: rotated_norm(x, *OF_ROWS, 1e-6),
        lambda x: rms_norm(rotate(x, *OF_ROWS), 1e-6),
    ),
    "relu squared": (relu_squared, lambda x: x.relu().square()),
}


def random(dtype: torch.dtype, seed: int) -> Tensor:
    """(B, T, H, D)."""
    return torch.randn(2, 6, 3, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def value_and_gradient(part: Part, x: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    y = part(leaf)
    (gradient,) = torch.autograd.grad(y, leaf, upstream)
    return y.detach(), gradient


@pytest.mark.parametrize("name", PARTS)
def test_gradients_are_right_to_the_last_digits(name: str) -> None:
    part, formula = PARTS[name]
    x, upstream = random(torch.float64, 0), random(torch.float64, 1)
    for got, want in zip(value_and_gradient(part, x, upstream), value_and_gradient(formula, x, upstream), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(part, (x.requires_grad_(),))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", PARTS)
def test_rounding_to_bf16_is_all_that_is_lost(name: str, compiled: bool) -> None:
    torch._dynamo.reset()
    part, formula = PARTS[name]
    x, upstream = random(torch.bfloat16, 2), random(torch.bfloat16, 3)
    made = value_and_gradient(torch.compile(part, dynamic=False) if compiled else part, x, upstream)
    for got, want in zip(made, value_and_gradient(formula, x.double(), upstream.double()), strict=True):
        assert got.dtype == torch.bfloat16
        assert float((got.double() - want).norm() / want.norm()) < 0.006


@pytest.mark.parametrize("name", PARTS)
def test_without_gradients_values_are_the_same(name: str) -> None:
    part, _ = PARTS[name]
    x = random(torch.float32, 4)
    with torch.no_grad():
        without = part(x)
    torch.testing.assert_close(part(x.requires_grad_()).detach(), without, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["norm", "rotated norm", "relu squared"])
def test_what_goes_in_is_not_kept(name: str) -> None:
    part, _ = PARTS[name]
    x = random(torch.float32, 5).requires_grad_()
    kept: list[Tensor] = []
    with saved_tensors_hooks(lambda tensor: (kept.append(tensor), tensor)[1], lambda tensor: tensor):
        y = part(x)
    storages = [tensor.untyped_storage().data_ptr() for tensor in kept]
    assert y.untyped_storage().data_ptr() in storages
    assert x.untyped_storage().data_ptr() not in storages
