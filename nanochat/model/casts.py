"""Matrices in eight bits, turned and not: for each cast the plain way, which the compiler sees through, and a fused one.

The fused ways are kernels of our own (nanochat.model.fp8_kernels) behind operators of torch: of the plain ones the compiler makes
parts of kernels that sum along rows, which then write columns a few bytes at a time. Where an operator meets a CPU's tensors it
computes the plain way.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

INPUT, GRADIENT = torch.float8_e4m3fn, torch.float8_e5m2


def in_eight_bits(x: Tensor, scale: Tensor | float, dtype: torch.dtype) -> Tensor:
    """x / scale in an fp8 dtype; what does not fit becomes the largest that does."""
    largest = torch.finfo(dtype).max
    return (x.float() / scale).clamp(-largest, largest).to(dtype)


def cast_and_turned(xs: Sequence[Tensor], scale: Tensor, dtype: torch.dtype, fused: bool) -> tuple[Tensor, Tensor]:
    """xs: (n, k) each, side by side, over their scale → in eight bits (n, Σk), and turned (Σk, n)."""
    if fused:
        rows, turned = _cast_and_turned(list(xs), scale, dtype)
        return rows, turned
    eights = [in_eight_bits(x, scale, dtype) for x in xs]
    rows = eights[0] if len(eights) == 1 else torch.cat(eights, dim=1)
    return rows, _turned_plainly(rows)


def turned(x: Tensor, after: Tensor, fused: bool) -> Tensor:
    """x: (n, k), in eight bits already → (k, n). after: a tensor of the backward pass, or the compiler would do it in the forward pass."""
    if fused:
        result: Tensor = _turned(x, after)
        return result
    return _turned_plainly((x.view(torch.uint8) + after.flatten()[0].isnan()).view(x.dtype))


def cast_turned(xs: Sequence[Tensor], scale: Tensor, after: Tensor, fused: bool) -> Tensor:
    """xs: (n, k) each, one below the other, over their scale → as inputs, turned (k, Σn). after: as for `turned`."""
    if fused:
        result: Tensor = _cast_turned(list(xs), scale, after)
        return result
    return torch.cat([_turned_plainly(in_eight_bits(x, scale, INPUT)) for x in xs], dim=1)


def relu_squared_gradient(d_h: Tensor, a: Tensor, d_scale: Tensor, h_scale: Tensor, fused: bool) -> tuple[Tensor, Tensor, Tensor]:
    """For h = max(a, 0)²: a's gradient 2·max(a, 0)·d_h in eight bits, (n, k) and turned (k, n), and h itself turned (k, n)."""
    if fused:
        rows, d_turned, h_turned = _relu_squared_gradient(d_h, a, d_scale, h_scale)
        return rows, d_turned, h_turned
    positive = a.float().relu()
    rows = in_eight_bits(2 * positive * d_h, d_scale, GRADIENT)
    return rows, _turned_plainly(rows), _turned_plainly(in_eight_bits(positive * positive, h_scale, INPUT))


def relu_squared_turned(a: Tensor, scale: Tensor, fused: bool) -> Tensor:
    """max(a, 0)² of a: (n, k), over its scale → in eight bits, turned (k, n)."""
    if fused:
        result: Tensor = _relu_squared_turned(a, scale)
        return result
    return _turned_plainly(in_eight_bits(a.float().relu().square(), scale, INPUT))


def _turned_plainly(x: Tensor) -> Tensor:
    return x.t().clone(memory_format=torch.contiguous_format)


@torch.library.custom_op("nanochat::cast_and_turned", mutates_args=())
def _cast_and_turned(xs: Sequence[Tensor], scale: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    if not scale.is_cuda:
        return cast_and_turned(xs, scale, dtype, fused=False)
    from nanochat.model.fp8_kernels import cast

    rows, turned = _like_both(xs, scale, dtype)
    widths = [x.size(1) for x in xs]
    for x, to, to_turned in zip(xs, rows.split(widths, dim=1), turned.split(widths), strict=True):
        cast(x, scale, to, to_turned)
    return rows, turned


@_cast_and_turned.register_fake
def _like_both(xs: Sequence[Tensor], scale: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    n, width = xs[0].size(0), sum(x.size(1) for x in xs)
    return scale.new_empty(n, width, dtype=dtype), scale.new_empty(width, n, dtype=dtype)


@torch.library.custom_op("nanochat::turned", mutates_args=())
def _turned(x: Tensor, after: Tensor) -> Tensor:
    if not x.is_cuda:
        return _turned_plainly(x)
    from nanochat.model.fp8_kernels import cast

    result = _like_turned(x, after)
    cast(x, None, None, result)
    return result


@_turned.register_fake
def _like_turned(x: Tensor, after: Tensor) -> Tensor:
    return x.new_empty(x.size(1), x.size(0))


@torch.library.custom_op("nanochat::cast_turned", mutates_args=())
def _cast_turned(xs: Sequence[Tensor], scale: Tensor, after: Tensor) -> Tensor:
    if not scale.is_cuda:
        return cast_turned(xs, scale, after, fused=False)
    from nanochat.model.fp8_kernels import cast

    result = _like_cast_turned(xs, scale, after)
    for x, to in zip(xs, result.split([x.size(0) for x in xs], dim=1), strict=True):
        cast(x, scale, None, to)
    return result


@_cast_turned.register_fake
def _like_cast_turned(xs: Sequence[Tensor], scale: Tensor, after: Tensor) -> Tensor:
    return scale.new_empty(xs[0].size(1), sum(x.size(0) for x in xs), dtype=INPUT)


@torch.library.custom_op("nanochat::relu_squared_gradient", mutates_args=())
def _relu_squared_gradient(d_h: Tensor, a: Tensor, d_scale: Tensor, h_scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if not a.is_cuda:
        return relu_squared_gradient(d_h, a, d_scale, h_scale, fused=False)
    from nanochat.model import fp8_kernels

    results = _like_relu_squared_gradient(d_h, a, d_scale, h_scale)
    fp8_kernels.relu_squared_gradient(d_h, a, d_scale, h_scale, *results)
    return results


@_relu_squared_gradient.register_fake
def _like_relu_squared_gradient(d_h: Tensor, a: Tensor, d_scale: Tensor, h_scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    n, k = a.shape
    return a.new_empty(n, k, dtype=GRADIENT), a.new_empty(k, n, dtype=GRADIENT), a.new_empty(k, n, dtype=INPUT)


@torch.library.custom_op("nanochat::relu_squared_turned", mutates_args=())
def _relu_squared_turned(a: Tensor, scale: Tensor) -> Tensor:
    if not a.is_cuda:
        return relu_squared_turned(a, scale, fused=False)
    from nanochat.model.fp8_kernels import cast

    result = _like_relu_squared_turned(a, scale)
    cast(a, scale, None, result, squares=True)
    return result


@_relu_squared_turned.register_fake
def _like_relu_squared_turned(a: Tensor, scale: Tensor) -> Tensor:
    return a.new_empty(a.size(1), a.size(0), dtype=INPUT)
