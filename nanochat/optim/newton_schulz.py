"""Orthogonalisation by Newton–Schulz iteration, a batch of matrices at a time."""

from collections.abc import Callable
from functools import cache, reduce
from itertools import pairwise

import torch
from torch import Tensor

STEPS = 5
# Quintic a·x + b·x³ + c·x⁵ with the steepest slope at zero that keeps singular values near one (Keller Jordan's Muon).
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
WITH_COPY_ENGINE = (9, 10)  # Hopper, Blackwell in data centers; what GeForce has of it lacks the shared memory besides
HALVINGS = 2  # of a symmetric product: 3/4 of it is made with one, 5/8 with two, and the rest is copied
SMALLEST_HALVED = 512  # rows; smaller blocks do not fill a GPU
# After which iterations the Gram matrix is made anew: left to itself it loses the small singular values in bf16 within three.
RENEWED_AFTER = (1, 3)


def newton_schulz_flops(rows: int, cols: int) -> int:
    """FLOPs to orthogonalise one matrix: three products an iteration, two with the matrix and one of its Gram matrix."""
    short, long = sorted((rows, cols))
    return STEPS * (4 * short * short * long + 2 * short**3)


@cache
def has_copy_engine(device: torch.device) -> bool:
    """Whether a device has the engine (TMA) that fetches tiles by itself, and the shared memory for them, which kernels of ours need."""
    return device.type == "cuda" and not torch.version.hip and torch.cuda.get_device_capability(device)[0] in WITH_COPY_ENGINE


def by_kernel(a: Tensor) -> bool:
    """Whether a symmetric product of a: (n, d, k) is made by a kernel of our own."""
    return a.dtype == torch.bfloat16 and not a.size(1) % 8 and not a.size(2) % 8 and has_copy_engine(a.device)


def plain_product(a: Tensor, b: Tensor, plus: Tensor | None = None, beta: float = 1.0, alpha: float = 1.0) -> Tensor:
    """alpha · a · b, and beta · plus besides; a: (n, d, k), b: (n, k, m), plus: (n, d, m) → (n, d, m)."""
    return a @ b if plus is None else torch.baddbmm(plus, a, b, beta=beta, alpha=alpha)


def symmetric_product(a: Tensor, b: Tensor, plus: Tensor | None = None, beta: float = 1.0, alpha: float = 1.0) -> Tensor:
    """The same where the result is known to be symmetric, (n, d, d), and b is symmetric too or the transpose of a.

    What is above the diagonal is made, what is below is copied: by a kernel of our own where the chip has a copy engine, else by blocks.
    """
    if by_kernel(a):
        from nanochat.optim.symmetric_kernel import symmetric

        return symmetric(a, b if b.is_contiguous() else b.mT, plus, beta, alpha)
    out = a.new_empty(a.size(0), a.size(1), b.size(2))
    for rows, columns in _blocks(0, a.size(1), HALVINGS):
        block = out[:, rows, columns]
        if plus is None:
            torch.bmm(a[:, rows], b[:, :, columns], out=block)
        else:
            torch.baddbmm(plus[:, rows, columns], a[:, rows], b[:, :, columns], beta=beta, alpha=alpha, out=block)
        if rows != columns:
            out[:, columns, rows] = block.mT
    return out


def _blocks(start: int, stop: int, halvings: int) -> list[tuple[slice, slice]]:
    """Rows and columns of the blocks on the diagonal and above it."""
    if halvings == 0 or stop - start < 2 * SMALLEST_HALVED:
        return [(slice(start, stop), slice(start, stop))]
    middle = (start + stop) // 2
    corner = (slice(start, middle), slice(middle, stop))
    return [*_blocks(start, middle, halvings - 1), *_blocks(middle, stop, halvings - 1), corner]


def _scaled(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    x = matrices.to(dtype, memory_format=torch.contiguous_format, copy=True)
    return x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)


def _iterate(wide: Tensor, dtype: torch.dtype, multiply: Callable[..., Tensor]) -> Tensor:
    """The iterations on wide matrices, (n, short, long), one after the other."""
    a, b, c = COEFFICIENTS
    x = _scaled(wide, dtype)
    for _ in range(STEPS):
        gram = multiply(x, x.mT)
        polynomial = multiply(gram, gram, gram, b, c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x


def _iterate_on_gram(wide: Tensor, dtype: torch.dtype, multiply: Callable[..., Tensor]) -> Tensor:
    """The same, most of it on the small Gram matrix: what the iterations multiply x by is a polynomial of it."""
    a, b, c = COEFFICIENTS
    x = _scaled(wide, dtype)
    marks = (0, *RENEWED_AFTER, STEPS)
    for first, last in pairwise(marks):
        gram, factors = multiply(x, x.mT), []
        for step in range(first, last):
            polynomial = multiply(gram, gram, gram, b, c)
            polynomial.diagonal(dim1=-2, dim2=-1).add_(a)
            factors.append(polynomial)
            if step + 1 < last:  # all are polynomials of one matrix, so that their products are symmetric
                gram = multiply(polynomial, multiply(gram, polynomial))
        x = reduce(multiply, factors) @ x
    return x


def orthogonalize(matrices: Tensor, dtype: torch.dtype, way: str = "plain") -> Tensor:
    """The nearest semi-orthogonal matrix of each, roughly: singular values come out between 0.7 and 1.2.

    matrices: (n, rows, cols) → the same shape, computed in `dtype` and returned in it. way: `plain`; `halves` makes symmetric
    products by half; `gram` does that too, and iterates on the Gram matrix where one side is twice the other or more.
    """
    tall = matrices.size(-2) > matrices.size(-1)
    wide = matrices.mT if tall else matrices
    multiply = plain_product if way == "plain" else symmetric_product
    on_gram = way == "gram" and wide.size(-1) >= 2 * wide.size(-2)
    x = (_iterate_on_gram if on_gram else _iterate)(wide, dtype, multiply)
    return x.mT if tall else x
