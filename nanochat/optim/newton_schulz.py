"""Orthogonalisation by Newton–Schulz iteration, a batch of matrices at a time."""

import torch
from torch import Tensor

STEPS = 5
# Quintic a·x + b·x³ + c·x⁵ with the steepest slope at zero that keeps singular values near one (Keller Jordan's Muon).
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def newton_schulz_flops(rows: int, cols: int) -> int:
    """FLOPs to orthogonalise one matrix: three products an iteration, two with the matrix and one of its Gram matrix."""
    short, long = sorted((rows, cols))
    return STEPS * (4 * short * short * long + 2 * short**3)


def orthogonalize(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """The nearest semi-orthogonal matrix of each, roughly: singular values come out between 0.7 and 1.2.

    matrices: (n, rows, cols) → the same shape, computed in `dtype` and returned in it.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.size(-2) > matrices.size(-1)
    x = (matrices.mT if tall else matrices).to(dtype)
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(STEPS):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.mT if tall else x
