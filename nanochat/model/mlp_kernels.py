"""A Triton kernel for the MLP's products that finishes their results before they leave the chip: by relu², or by its gradient.

Left to the compiler each is one more pass over tensors of tokens × 4d: 20 of the 49 widths that a layer's element-wise kernels read
and write. The product itself is as fast as the library's on Hopper, whose copy engine (TMA) it needs. Imported where there is a GPU
only; nanochat.model.fused_mlp says what it computes.
"""

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

ROWS, COLUMNS, DEPTH = 128, 256, 64  # of a tile of the result, and of what is multiplied at a time
GROUP = 8  # rows of tiles that follow each other, so that they find each other's operands in the cache
OPTIONS = {"num_warps": 8, "num_stages": 3}


@triton.jit
def place(tile, rows, columns, GROUP: tl.constexpr):  # type: ignore[no-untyped-def]
    """Row and column of a tile of the result."""
    first = tile // (GROUP * columns) * GROUP
    height = min(rows - first, GROUP)
    return first + tile % (GROUP * columns) % height, tile % (GROUP * columns) // height


@triton.jit
def _finish(x, y_desc, to_desc, i, j, GRADIENT: tl.constexpr):  # type: ignore[no-untyped-def]
    if GRADIENT:
        x = 2.0 * tl.sqrt(y_desc.load([i, j]).to(tl.float32)) * x
    else:
        x = tl.where(x < 0.0, 0.0, x)
        x = x * x
    to_desc.store([i, j], x.to(to_desc.dtype))


@triton.jit
def _product(  # type: ignore[no-untyped-def]
    a_desc, b_desc, y_desc, to_desc, n, m, k, PROGRAMS: tl.constexpr, GRADIENT: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    rows, columns = tl.cdiv(n, ROWS), tl.cdiv(m, COLUMNS)
    for tile in tl.range(tl.program_id(0), rows * columns, PROGRAMS, flatten=True):
        row, column = place(tile, rows, columns, GROUP)
        x = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
        for step in range(tl.cdiv(k, DEPTH)):
            a = a_desc.load([row * ROWS, step * DEPTH])
            if GRADIENT:  # noqa: SIM108
                b = b_desc.load([step * DEPTH, column * COLUMNS])
            else:
                b = b_desc.load([column * COLUMNS, step * DEPTH]).T
            x = tl.dot(a, b, x)
        # By halves, which take half the shared memory.
        left, right = tl.split(tl.permute(tl.reshape(x, (ROWS, 2, COLUMNS // 2)), (0, 2, 1)))
        _finish(left, y_desc, to_desc, row * ROWS, column * COLUMNS, GRADIENT)
        _finish(right, y_desc, to_desc, row * ROWS, column * COLUMNS + COLUMNS // 2, GRADIENT)


@cache
def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU, as many programs as are started; one in Triton's interpreter."""
    return int(torch.cuda.get_device_properties(device).multi_processor_count) if device.type == "cuda" else 1


def product(a: Tensor, b: Tensor, y: Tensor | None) -> Tensor:
    """a: (n, k), b: (m, k) → relu(a·bᵀ)²; or, with y: (n, m), what that gave before, and b: (k, m): 2·√y·(a·b); (n, m)."""
    a, b = a.contiguous(), b.contiguous()
    n, k = a.shape
    gradient = y is not None
    m = b.size(1) if gradient else b.size(0)
    to, half = a.new_empty(n, m), [ROWS, COLUMNS // 2]
    described = TensorDescriptor.from_tensor
    programs = min(processors(a.device), triton.cdiv(n, ROWS) * triton.cdiv(m, COLUMNS))
    _product[(programs,)](
        described(a, [ROWS, DEPTH]), described(b, [DEPTH, COLUMNS] if gradient else [COLUMNS, DEPTH]),
        described(to if y is None else y.contiguous(), half), described(to, half), n, m, k, programs, gradient,
        ROWS, COLUMNS, DEPTH, GROUP, **OPTIONS,
    )  # fmt: skip
    return to
