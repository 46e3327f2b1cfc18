"""Triton kernels that cast a matrix to eight bits and turn it in one pass; the hardware wants both operands of a product in rows.

Imported where there is a GPU only. nanochat.model.casts says what they compute.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 128  # rows and columns of a tile: 128 bytes in eight bits, which is a transaction of the memory
WARPS = 8


@triton.jit
def cut(x, LARGEST: tl.constexpr):  # type: ignore[no-untyped-def]
    """Within ±LARGEST; what is not a number stays so."""
    x = tl.where(x > LARGEST, LARGEST, x)
    return tl.where(x < -LARGEST, -LARGEST, x)


@triton.jit
def _cast(  # type: ignore[no-untyped-def]
    x_ptr, scale_ptr, rows_ptr, turned_ptr, n, k, x_stride, rows_stride, turned_stride,
    LARGEST: tl.constexpr, CASTS: tl.constexpr, SQUARES: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    j = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = (i < n)[:, None] & (j < k)[None, :]
    x = tl.load(x_ptr + i[:, None] * x_stride + j[None, :], mask=inside)
    if SQUARES:
        x = x.to(tl.float32)
        x = tl.where(x < 0.0, 0.0, x)
        x = x * x
    if CASTS:
        x = cut(x.to(tl.float32) / tl.load(scale_ptr), LARGEST).to(turned_ptr.dtype.element_ty)
    if ROWS:
        tl.store(rows_ptr + i[:, None] * rows_stride + j[None, :], x, mask=inside)
    tl.store(turned_ptr + j[:, None] * turned_stride + i[None, :], tl.trans(x), mask=tl.trans(inside))


@triton.jit
def _relu_squared_gradient(  # type: ignore[no-untyped-def]
    d_h_ptr, a_ptr, d_scale_ptr, h_scale_ptr, rows_ptr, h_turned_ptr, n, k,
    D_LARGEST: tl.constexpr, H_LARGEST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    j = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = (i < n)[:, None] & (j < k)[None, :]
    at, at_turned = i[:, None] * k + j[None, :], j[:, None] * n + i[None, :]
    a = tl.load(a_ptr + at, mask=inside).to(tl.float32)
    a = tl.where(a < 0.0, 0.0, a)
    d_a = tl.load(d_h_ptr + at, mask=inside).to(tl.float32) * (2.0 * a)
    d_a = cut(d_a / tl.load(d_scale_ptr), D_LARGEST).to(rows_ptr.dtype.element_ty)
    tl.store(rows_ptr + at, d_a, mask=inside)
    h = cut(a * a / tl.load(h_scale_ptr), H_LARGEST).to(h_turned_ptr.dtype.element_ty)
    tl.store(h_turned_ptr + at_turned, tl.trans(h), mask=tl.trans(inside))


def _grid(n: int, k: int) -> tuple[int, int]:
    return triton.cdiv(n, BLOCK), triton.cdiv(k, BLOCK)


def cast(x: Tensor, scale: Tensor | None, rows: Tensor | None, turned: Tensor, squares: bool = False) -> None:
    """x: (n, k) over its scale, into rows: (n, k) and turned: (k, n); as it is where there is no scale. squares: relu(x)² instead."""
    if x.stride(1) != 1:
        x = x.contiguous()
    (n, k), to = x.shape, turned if rows is None else rows
    largest = torch.finfo(turned.dtype).max
    strides = (x.stride(0), to.stride(0), turned.stride(0))
    _cast[_grid(n, k)](
        x, turned if scale is None else scale, to, turned, n, k, *strides,
        LARGEST=largest, CASTS=scale is not None, SQUARES=squares, ROWS=rows is not None, BLOCK=BLOCK, num_warps=WARPS,
    )  # fmt: skip


def relu_squared_gradient(d_h: Tensor, a: Tensor, d_scale: Tensor, h_scale: Tensor, rows: Tensor, turned: Tensor, h_turned: Tensor) -> None:
    """d_h, a: (n, k); fills rows: (n, k), turned and h_turned: (k, n).

    Two kernels: what Triton 3.6 makes for Hopper of one that turns two tiles mixes up the second.
    """
    d_h, a = d_h.contiguous(), a.contiguous()
    n, k = a.shape
    largest = (torch.finfo(rows.dtype).max, torch.finfo(h_turned.dtype).max)
    _relu_squared_gradient[_grid(n, k)](
        d_h, a, d_scale, h_scale, rows, h_turned, n, k,
        D_LARGEST=largest[0], H_LARGEST=largest[1], BLOCK=BLOCK, num_warps=WARPS,
    )  # fmt: skip
    cast(rows, None, None, turned)
