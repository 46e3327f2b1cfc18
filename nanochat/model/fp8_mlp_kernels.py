"""A Triton kernel for the MLP's products in eight bits that finishes their results before they leave the chip.

Forward: relu² and its cast. Backward: relu²'s gradient, its cast, and the same turned. What these read and write as passes of their own
are 20 of a layer's bytes for each token and width. Imported where there is a GPU with a copy engine (TMA) only;
nanochat.model.fp8_mlp says what it computes.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from nanochat.model.fp8_kernels import cut
from nanochat.model.mlp_kernels import GROUP, place, processors

ROWS, DEPTH = 128, 128  # of a tile of the result, and of what is multiplied at a time
COLUMNS = {True: 256, False: 128}  # by whether sums are the short ones: long ones take registers besides
OPTIONS = {True: {"num_warps": 8, "num_stages": 3}, False: {"num_warps": 8, "num_stages": 4}}


@triton.jit
def _finish(  # type: ignore[no-untyped-def]
    x, scale, a_desc, eight_desc, turned_desc, i, j, GRADIENT: tl.constexpr, LARGEST: tl.constexpr,
):  # fmt: skip
    x = x.to(a_desc.dtype)  # as the product alone would give it
    if GRADIENT:
        a = a_desc.load([i, j]).to(tl.float32)
        x = x.to(tl.float32) * (2.0 * tl.where(a < 0.0, 0.0, a))
    else:
        a_desc.store([i, j], x)
        x = x.to(tl.float32)
        x = tl.where(x < 0.0, 0.0, x)
        x = x * x
    x = cut(x / scale, LARGEST).to(eight_desc.dtype)
    eight_desc.store([i, j], x)
    if GRADIENT:
        turned_desc.store([j, i], tl.trans(x))


@triton.jit
def _product(  # type: ignore[no-untyped-def]
    l_desc, r_desc, l_scale_ptr, r_scale_ptr, scale_ptr, a_desc, eight_desc, turned_desc, n, m, k, PROGRAMS: tl.constexpr,
    GRADIENT: tl.constexpr, LARGEST: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    GROUP: tl.constexpr, SUMMED: tl.constexpr,
):  # fmt: skip
    rows, columns = tl.cdiv(n, ROWS), tl.cdiv(m, COLUMNS)
    factor, scale = tl.load(l_scale_ptr) * tl.load(r_scale_ptr), tl.load(scale_ptr)
    for tile in tl.range(tl.program_id(0), rows * columns, PROGRAMS, flatten=True):
        row, column = place(tile, rows, columns, GROUP)
        x = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
        for step in range(tl.cdiv(k, DEPTH)):
            left = l_desc.load([row * ROWS, step * DEPTH])
            right = r_desc.load([column * COLUMNS, step * DEPTH])
            x = tl.dot(left, right.T, x, max_num_imprecise_acc=SUMMED)
        x *= factor
        # By halves, which take half the shared memory.
        first, second = tl.split(tl.permute(tl.reshape(x, (ROWS, 2, COLUMNS // 2)), (0, 2, 1)))
        i, j = row * ROWS, column * COLUMNS
        _finish(first, scale, a_desc, eight_desc, turned_desc, i, j, GRADIENT, LARGEST)
        _finish(second, scale, a_desc, eight_desc, turned_desc, i, j + COLUMNS // 2, GRADIENT, LARGEST)


def constants(gradient: bool, fast: bool, eight: torch.dtype) -> dict[str, Any]:
    """What the kernel is made for, apart from the chip. eight: of the results."""
    return {
        "GRADIENT": gradient, "LARGEST": torch.finfo(eight).max, "ROWS": ROWS, "COLUMNS": COLUMNS[fast], "DEPTH": DEPTH, "GROUP": GROUP,
        "SUMMED": None if fast else DEPTH,
    }  # fmt: skip


def product(
    left: Tensor, left_scale: Tensor, right: Tensor, right_scale: Tensor, scale: Tensor, a: Tensor, eight: Tensor, turned: Tensor | None,
    fast: bool,
) -> None:  # fmt: skip
    """left: (n, k), right: (m, k), in eight bits, with their scales, all sizes divisible by 16: fills what else is given.

    Without `turned`: a: (n, m) with the product, and eight: (n, m) with relu(a)² / scale. With it: eight, and turned: (m, n), with the
    product times relu²'s slope at a, over scale. fast: as for `nanochat.model.fp8.product`.
    """
    (n, k), m = left.shape, right.size(0)
    half, gradient = COLUMNS[fast] // 2, turned is not None
    described = TensorDescriptor.from_tensor
    programs = min(processors(left.device), triton.cdiv(n, ROWS) * triton.cdiv(m, COLUMNS[fast]))
    _product[(programs,)](
        described(left.contiguous(), [ROWS, DEPTH]), described(right.contiguous(), [COLUMNS[fast], DEPTH]), left_scale, right_scale, scale,
        described(a, [ROWS, half]), described(eight, [ROWS, half]),
        described(eight, [ROWS, half]) if turned is None else described(turned, [half, ROWS]),
        n, m, k, programs, **constants(gradient, fast, eight.dtype), **OPTIONS[fast],
    )  # fmt: skip
