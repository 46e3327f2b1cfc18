"""A Triton kernel for products that are known to be symmetric: tiles on the diagonal and above are made, and stored turned besides.

Half of the work of a plain product, at nearly its speed, on chips with a copy engine (TMA). Imported where there is one only.
"""

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

SIDE, DEPTH = 128, 64  # of a tile of the result, and of what is multiplied at a time
OPTIONS = {"num_warps": 4, "num_stages": 4}


@triton.jit
def _symmetric(  # type: ignore[no-untyped-def]
    a_desc, b_desc, plus_desc, to_desc, k, tiles, alpha, beta, PLUS: tl.constexpr, SIDE: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    i, j, matrix = tl.program_id(0) // tiles, tl.program_id(0) % tiles, tl.program_id(1)
    if j >= i:
        x = tl.zeros((SIDE, SIDE), dtype=tl.float32)
        for step in range(tl.cdiv(k, DEPTH)):
            a = a_desc.load([matrix, i * SIDE, step * DEPTH]).reshape(SIDE, DEPTH)
            b = b_desc.load([matrix, j * SIDE, step * DEPTH]).reshape(SIDE, DEPTH)
            x = tl.dot(a, b.T, x)
        x *= alpha
        if PLUS:
            x += beta * plus_desc.load([matrix, i * SIDE, j * SIDE]).reshape(SIDE, SIDE).to(tl.float32)
        x = x.to(to_desc.dtype)
        to_desc.store([matrix, i * SIDE, j * SIDE], x.reshape(1, SIDE, SIDE))
        if j > i:
            to_desc.store([matrix, j * SIDE, i * SIDE], x.T.reshape(1, SIDE, SIDE))


def described(x: Tensor, block: list[int]) -> TensorDescriptor:
    """x: (n, m, k), for tiles of a block. Strides are those of its shape: of a single matrix torch may keep any other."""
    _, m, k = x.shape
    return TensorDescriptor(x.contiguous(), list(x.shape), [m * k, k, 1], block)


def symmetric(a: Tensor, b: Tensor, plus: Tensor | None, beta: float, alpha: float) -> Tensor:
    """alpha · a·bᵀ + beta · plus, which must be symmetric; a, b: (n, d, k), plus: (n, d, d) → (n, d, d)."""
    n, d, k = a.shape
    to, tiles = a.new_empty(n, d, d), triton.cdiv(d, SIDE)
    operand, square = [1, SIDE, DEPTH], [1, SIDE, SIDE]
    _symmetric[(tiles * tiles, n)](
        described(a, operand), described(b, operand), described(to if plus is None else plus, square), described(to, square),
        k, tiles, alpha, beta, plus is not None, SIDE, DEPTH, **OPTIONS,
    )  # fmt: skip
    return to
