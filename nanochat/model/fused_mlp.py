"""The MLP with relu² and its gradient inside the products before them, applied from outside.

The products are kernels of our own (nanochat.model.mlp_kernels) behind operators of torch; where an operator meets a CPU's tensors it
computes the plain way.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nanochat.model.gpt import GPT, Block


@torch.library.custom_op("nanochat::relu_squared_of_product", mutates_args=())
def relu_squared_of_product(x: Tensor, weight: Tensor) -> Tensor:
    """x: (n, k), weight: (m, k) → relu(x · weightᵀ)², (n, m)."""
    if not x.is_cuda:
        return (x @ weight.t()).relu().square()
    from nanochat.model.mlp_kernels import product

    return product(x, weight, None)


@relu_squared_of_product.register_fake
def _like_relu_squared(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(x.size(0), weight.size(0))


@torch.library.custom_op("nanochat::product_times_slope", mutates_args=())
def product_times_slope(g: Tensor, weight: Tensor, y: Tensor) -> Tensor:
    """g: (n, k), weight: (k, m) → their product times relu²'s slope 2 · √y, (n, m); y: (n, m), what relu² gave."""
    if not g.is_cuda:
        return 2 * y.sqrt() * (g @ weight)
    from nanochat.model.mlp_kernels import product

    return product(g, weight, y)


@product_times_slope.register_fake
def _like_product(g: Tensor, weight: Tensor, y: Tensor) -> Tensor:
    return g.new_empty(g.size(0), weight.size(1))


class FusedMLP(torch.autograd.Function):
    """relu(x · w1ᵀ)² · w2ᵀ; what goes in and relu²'s result are kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
        """x: (n, d), w1: (4d, d), w2: (d, 4d) → (n, d)."""
        y: Tensor = relu_squared_of_product(x, w1)
        ctx.save_for_backward(x, y, w1, w2)
        return y @ w2.t()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, ...]:
        """Of all three."""
        (x, y, w1, w2), (g,) = ctx.saved_tensors, upstream
        d_a: Tensor = product_times_slope(g, w2, y)
        return d_a @ w1, d_a.t() @ x, g.t() @ y


def fused_mlp(x: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
    """x: (…, d), w1: (4d, d), w2: (d, 4d) → (…, d)."""
    y: Tensor = FusedMLP.apply(x.flatten(0, -2), w1, w2)
    return y.view(x.shape)


def use_fused_mlp(model: GPT) -> None:
    """Let the MLPs of the model's layers be computed so in training, in place; evaluations and samples are left alone."""
    for block in model.model.layers:
        assert isinstance(block, Block)
        block.mlp.in_training = fused_mlp
