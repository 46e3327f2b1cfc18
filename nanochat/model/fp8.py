"""Matrix products in eight bits (FP8 formats for deep learning, arXiv 2209.05433): twice the speed of bf16 where a chip has them.

Inputs and weights are e4m3, upstream gradients e5m2, each with one scale for a whole tensor; sums and results are of the compute
dtype's precision or better. What a norm gives has a scale that is known beforehand. Any other is taken from the tensor's largest
value, anew for each micro-batch or for the first of a step. Only the layers' six products are made so: embedding, head, norms,
attention, and everything the optimizer holds stay as they are.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nanochat.model.casts import GRADIENT, INPUT, cast_and_turned, cast_turned, in_eight_bits, turned

SAMPLED = 4  # of so many gradients one is looked at for a largest value that is to serve a whole step
SMALLEST = 1e-12  # the least value that a tensor's largest counts as: one of zeros alone gets a scale too
# How much larger than in a step's first micro-batch the largest value may be in the others: beyond that it is cut off.
# Both formats are floating ones, so that this takes digits from the smallest values only; e5m2 has 31 binades for them, e4m3 18.
ROOM = {INPUT: 2.0, GRADIENT: 16.0}


def largest_of(*xs: Tensor) -> Tensor:
    """The largest absolute value, a float32 scalar."""
    return torch.stack([x.abs().amax() for x in xs]).amax().float()


def sampled(x: Tensor) -> Tensor:
    """x: (n, k) → a quarter of it: of every row one part in four, the next part in the next row, so that no token is left out.

    In a conversation few tokens have a gradient. All of x where n or k does not divide.
    """
    n, k = x.shape
    if n % SAMPLED or k % SAMPLED:
        return x
    return x.view(n // SAMPLED, SAMPLED, SAMPLED, k // SAMPLED).diagonal(dim1=1, dim2=2)


def largest_gradient(others: bool, *gradients: Tensor) -> Tensor:
    """`largest_of`; where it is to serve other micro-batches, with ROOM, of a quarter of each, (n, k)."""
    return largest_of(*map(sampled, gradients)) if others else largest_of(*gradients)


def scale_of(largest: Tensor, dtype: torch.dtype, room: float = 1.0) -> Tensor:
    """What a tensor in an fp8 dtype is to be multiplied by, so that values up to `room` times the largest fit."""
    return largest.clamp(min=SMALLEST) * (room / torch.finfo(dtype).max)


def quantized_together(weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """weights: (n, k) each → one below the other as inputs, (Σn, k), and the scale of all."""
    scale = scale_of(largest_of(*weights), INPUT)
    return torch.cat([in_eight_bits(weight, scale, INPUT) for weight in weights]), scale


def scale_of_norms(width: int) -> float:
    """For what RMSNorm gives, in e4m3: no value of `width` ones is beyond √width. A power of two, which rounds nothing."""
    return 2.0 ** math.ceil(math.log2(math.sqrt(width) / torch.finfo(INPUT).max))


def product(a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, dtype: torch.dtype, fast: bool) -> Tensor:
    """a: (n, k) times the transpose of b: (m, k), both in rows → (n, m). fast: sum in the tensor cores' own, shorter registers."""
    return torch._scaled_mm(a, b.t(), scale_a=a_scale, scale_b=b_scale, out_dtype=dtype, use_fast_accum=fast)


def weights_in_eight_bits(
    kept: Tensor | None, scale: Tensor | None, weights: Sequence[Tensor], largest: Tensor | None
) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
    """Each weight in eight bits, the scale of all, and their largest value, where it is known already; the first two kept or made."""
    if kept is not None and scale is not None:
        return kept.split([weight.size(0) for weight in weights]), scale, scale * torch.finfo(INPUT).max
    largest = largest_of(*weights) if largest is None else largest
    scale = scale_of(largest, INPUT)
    return tuple(in_eight_bits(weight, scale, INPUT) for weight in weights), scale, largest


def turned_weights(kept: Tensor | None, scale: Tensor, weights: Sequence[Tensor], after: Tensor, fused: bool) -> Tensor:
    """(in, Σout), made again of what is kept or of the weights: keeping it from the forward pass costs more."""
    return cast_turned(weights, scale, after, fused) if kept is None else turned(kept, after, fused)


class Fp8Products(torch.autograd.Function):
    """x · weightᵀ of one or several weights with all in fp8, and so are the products of the gradients."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, kept: Tensor | None, kept_scale: Tensor | None, largest: Tensor | None,
        fixed: float | None, first: bool, fast: bool, fused: bool, *weights: Tensor,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        """x: (n, in), weights: (out, in) each, of one dtype → (n, out) each in it.

        kept, kept_scale: the weights as `quantized_together` made them before, where it has. fixed: x's scale where it is known.
        largest: (3,) float32, the largest values of x, of the upstream gradients and of the weights, of which scales are made; in
        the first micro-batch of a step they are taken of the tensors themselves, and come back as the gradient of `largest`.
        fast: whether the gradients' sums are the short ones too. fused: whether casts are kernels of our own.
        """
        takes = largest is None or first
        room = 1.0 if largest is None else ROOM[INPUT]
        x_largest = torch.full((), fixed or 0.0, device=x.device) if fixed or largest is None else largest[0]
        if takes and not fixed:
            x_largest = largest_of(x)
        x_scale = x_largest if fixed else scale_of(x_largest, INPUT, room)
        x8 = in_eight_bits(x, fixed or x_scale, INPUT)
        eights, w_scale, w_largest = weights_in_eight_bits(kept, kept_scale, weights, None if takes else largest[2])  # type: ignore[index]
        # What no norm gives is kept elsewhere as it is: it is made eight bits again.
        ctx.save_for_backward(x8 if fixed else x, x_scale, x_largest, w_scale, w_largest, kept, largest, *weights)
        ctx.how = takes, fast, fused
        return tuple(product(x8, x_scale, w8, w_scale, x.dtype, fast=True) for w8 in eights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        """All gradients in the compute dtype: the gradients of the results side by side are one operand of two products."""
        x, x_scale, x_largest, w_scale, w_largest, kept, largest, *weights = ctx.saved_tensors
        takes, fast, fused = ctx.how
        dtype = upstream[0].dtype
        g_largest = largest_gradient(largest is not None, *upstream) if takes else largest[1]
        g_scale = scale_of(g_largest, GRADIENT, 1.0 if largest is None else ROOM[GRADIENT])
        g8, g8_turned = cast_and_turned(upstream, g_scale, GRADIENT, fused)
        w8_turned = turned_weights(kept, w_scale, weights, upstream[0], fused)
        d_x = product(g8, g_scale, w8_turned, w_scale, dtype, fast)
        made = x.dtype == INPUT
        x8_turned = turned(x, upstream[0], fused) if made else cast_turned([x], x_scale, upstream[0], fused)
        d_weights = product(g8_turned, g_scale, x8_turned, x_scale, dtype, fast)
        found = torch.stack((x_largest, g_largest, w_largest)) if takes and largest is not None else None
        return d_x, None, None, found, None, None, None, None, *d_weights.split([weight.size(0) for weight in weights])
