"""A layer's MLP in eight bits, whose products may end with relu² or its gradient, and with the cast of what that gives.

Products that end so are kernels of our own (nanochat.model.fp8_mlp_kernels) behind operators of torch; where an operator meets a CPU's
tensors it computes the plain way.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nanochat.model.casts import (
    GRADIENT,
    INPUT,
    cast_and_turned,
    in_eight_bits,
    relu_squared_gradient,
    relu_squared_turned,
    turned,
)
from nanochat.model.fp8 import ROOM, largest_gradient, largest_of, product, scale_of, turned_weights, weights_in_eight_bits


@torch.library.custom_op("nanochat::fp8_relu_squared_of_product", mutates_args=())
def relu_squared_of_product(
    x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, scale: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """x: (n, k), weight: (m, k), both in eight bits → their product a in dtype, and relu(a)² over scale in eight bits, (n, m) each."""
    if not x.is_cuda:
        a = product(x, x_scale, weight, weight_scale, dtype, fast=True)
        return a, in_eight_bits(a.float().relu().square(), scale, INPUT)
    from nanochat.model import fp8_mlp_kernels

    a, eight = _like_relu_squared(x, x_scale, weight, weight_scale, scale, dtype)
    fp8_mlp_kernels.product(x, x_scale, weight, weight_scale, scale, a, eight, None, fast=True)
    return a, eight


@relu_squared_of_product.register_fake
def _like_relu_squared(
    x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, scale: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    n, m = x.size(0), weight.size(0)
    return x.new_empty(n, m, dtype=dtype), x.new_empty(n, m, dtype=INPUT)


@torch.library.custom_op("nanochat::fp8_product_times_slope", mutates_args=())
def product_times_slope(
    g: Tensor, g_scale: Tensor, weight: Tensor, weight_scale: Tensor, a: Tensor, scale: Tensor, fast: bool
) -> tuple[Tensor, Tensor]:
    """g: (n, k), weight: (m, k), both in eight bits, a: (n, m) → their product times 2·max(a, 0), over scale in eight bits; and turned.

    (n, m) and (m, n).
    """
    if not g.is_cuda:
        d_h = product(g, g_scale, weight, weight_scale, a.dtype, fast)
        eight = in_eight_bits(2 * a.float().relu() * d_h, scale, GRADIENT)
        return eight, eight.t().clone(memory_format=torch.contiguous_format)
    from nanochat.model import fp8_mlp_kernels

    rows, turned_rows = _like_product(g, g_scale, weight, weight_scale, a, scale, fast)
    fp8_mlp_kernels.product(g, g_scale, weight, weight_scale, scale, a, rows, turned_rows, fast)
    return rows, turned_rows


@product_times_slope.register_fake
def _like_product(
    g: Tensor, g_scale: Tensor, weight: Tensor, weight_scale: Tensor, a: Tensor, scale: Tensor, fast: bool
) -> tuple[Tensor, Tensor]:
    n, m = a.shape
    return a.new_empty(n, m, dtype=GRADIENT), a.new_empty(m, n, dtype=GRADIENT)


class Fp8MLP(torch.autograd.Function):
    """Two products with relu² between, all in fp8; only what goes in and the first product are kept."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, kept1: Tensor | None, scale1: Tensor | None, kept2: Tensor | None, scale2: Tensor | None,
        largest: Tensor | None, fixed: float, first: bool, fast: bool, fused: bool, finishes: bool, weight1: Tensor, weight2: Tensor,
    ) -> Tensor:  # fmt: skip
        """x: (n, d), what a norm gives, of the scale `fixed`; weight1: (4d, d), weight2: (d, 4d) → (n, d).

        largest: (5,) float32, of relu²'s results, of the upstream gradient, of the first product's and of both weights; else as for
        Fp8Products. finishes: whether products whose results' scales are known end with relu², its gradient and their casts.
        """
        takes = largest is None or first
        (w1,), scale1, largest1 = weights_in_eight_bits(kept1, scale1, [weight1], None if takes else largest[3])  # type: ignore[index]
        (w2,), scale2, largest2 = weights_in_eight_bits(kept2, scale2, [weight2], None if takes else largest[4])  # type: ignore[index]
        x8, x_scale = in_eight_bits(x, fixed, INPUT), torch.full((), fixed, device=x.device)
        finishes = finishes and not takes
        if finishes:
            h_largest = largest[0]  # type: ignore[index]
            h_scale = scale_of(h_largest, INPUT, ROOM[INPUT])
            a, h8 = relu_squared_of_product(x8, x_scale, w1, scale1, h_scale, x.dtype)
        else:
            a = product(x8, x_scale, w1, scale1, x.dtype, fast=True)
            h = a.float().relu().square()
            h_largest = largest_of(h) if takes else largest[0]  # type: ignore[index]
            h_scale = scale_of(h_largest, INPUT, 1.0 if largest is None else ROOM[INPUT])
            h8 = in_eight_bits(h, h_scale, INPUT)
        y = product(h8, h_scale, w2, scale2, x.dtype, fast=True)
        found = (h_largest, largest1, largest2)
        ctx.save_for_backward(x8, x_scale, a, h_scale, *found, scale1, scale2, kept1, kept2, largest, weight1, weight2)
        ctx.how = takes, fast, fused, finishes
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        """All gradients in the compute dtype."""
        x8, x_scale, a, h_scale, h_largest, largest1, largest2, scale1, scale2, kept1, kept2, largest, weight1, weight2 = ctx.saved_tensors
        (takes, fast, fused, finishes), g = ctx.how, upstream[0]
        room = 1.0 if largest is None else ROOM[GRADIENT]
        g_largest = largest_gradient(largest is not None, g) if takes else largest[1]
        g_scale = scale_of(g_largest, GRADIENT, room)
        g8, g8_turned = cast_and_turned([g], g_scale, GRADIENT, fused)
        w2_turned = turned_weights(kept2, scale2, [weight2], g, fused)
        if finishes:
            a_largest = largest[2]
            a_scale = scale_of(a_largest, GRADIENT, room)
            d_a, d_a_turned = product_times_slope(g8, g_scale, w2_turned, scale2, a, a_scale, fast)
            h_turned = relu_squared_turned(a, h_scale, fused)
        else:
            d_h = product(g8, g_scale, w2_turned, scale2, g.dtype, fast)
            a_largest = largest_gradient(largest is not None, 2 * a.float().relu() * d_h) if takes else largest[2]
            a_scale = scale_of(a_largest, GRADIENT, room)
            d_a, d_a_turned, h_turned = relu_squared_gradient(d_h, a, a_scale, h_scale, fused)
        d_weight2 = product(g8_turned, g_scale, h_turned, h_scale, g.dtype, fast)
        d_x = product(d_a, a_scale, turned_weights(kept1, scale1, [weight1], g, fused), scale1, g.dtype, fast)
        d_weight1 = product(d_a_turned, a_scale, turned(x8, g, fused), x_scale, g.dtype, fast)
        found = torch.stack((h_largest, g_largest, a_largest, largest1, largest2)) if takes and largest is not None else None
        return d_x, None, None, None, None, found, None, None, None, None, None, d_weight1, d_weight2
