"""The element-wise parts of a layer. In training their gradients are made from their results, which saves keeping their inputs.

A norm's gradient needs its result and one factor a row, relu²'s the root of its result; both results are kept anyway, by the matrix
product or the attention that reads them. Compiled, each is one pass over its tensors, forward and backward.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def _wide(x: Tensor) -> Tensor:
    """In float32 where x has fewer digits."""
    return x.float() if x.element_size() < torch.float32.itemsize else x


def _narrow(x: Tensor, dtype: torch.dtype) -> Tensor:
    """In a dtype. Not by .to() where it has it already: of a Function that ends with such a call torch 2.11 compiles no gradient."""
    return x if x.dtype == dtype else x.to(dtype)


def rms_norm(x: Tensor, eps: float) -> Tensor:
    """x over the root of its mean square along the last dimension, without a weight, in x's dtype (arXiv 1910.07467)."""
    return F.rms_norm(x, (x.size(-1),), eps=eps)


def rotary_table(length: int, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin of position × frequency, each (length, head_dim / 2) in float32 (RoFormer, arXiv 2104.09864)."""
    frequencies = 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (x1, x2) of the two halves of x: (B, T, H, D) by their angles; cos, sin: (T, D/2) or (B, T, D/2)."""
    x1, x2 = x.chunk(2, dim=-1)
    cos, sin = cos.unsqueeze(-2).to(x.dtype), sin.unsqueeze(-2).to(x.dtype)
    return torch.cat((x1 * cos + x2 * sin, x2 * cos - x1 * sin), dim=-1)


def norm(x: Tensor, eps: float) -> Tensor:
    """RMSNorm inside a layer: as `rms_norm`, but with its result kept for the backward pass."""
    y: Tensor = RMSNorm.apply(x, eps) if torch.is_grad_enabled() else rms_norm(x, eps)
    return y


def rotated_norm(x: Tensor, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
    """Rotary positions, then RMSNorm of every head; x: (B, T, H, D), cos, sin: (T, D/2) or (B, T, D/2)."""
    y: Tensor = RotatedNorm.apply(x, cos, sin, eps) if torch.is_grad_enabled() else rms_norm(rotate(x, cos, sin), eps)
    return y


def relu_squared(x: Tensor) -> Tensor:
    """max(x, 0)² (Primer, arXiv 2109.08668)."""
    y: Tensor = ReluSquared.apply(x) if torch.is_grad_enabled() else x.relu().square()
    return y


class RMSNorm(torch.autograd.Function):
    """See `norm`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        """x: (…, d) → (…, d)."""
        wide = _wide(x)
        factor = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
        y = _narrow(wide * factor, x.dtype)
        ctx.save_for_backward(y, factor)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        """With y = f·x: f · (g − y · mean(g · y))."""
        y, factor = ctx.saved_tensors
        g, wide = _wide(upstream[0]), _wide(y)
        return (factor * (g - wide * (g * wide).mean(dim=-1, keepdim=True))).to(y.dtype), None


def _swapped(x: Tensor) -> Tensor:
    """The halves of the last dimension, in the other order."""
    return x.unflatten(-1, (2, -1)).flip(-2).flatten(-2)


def _tables(cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """For a whole head: the cosines of both halves, and the sines that the other half is multiplied by; (…, T, 1, D)."""
    sign = 1 - 2 * torch.arange(2, device=sin.device, dtype=sin.dtype)[:, None]
    c, s = cos.unsqueeze(-2).expand(*cos.shape[:-1], 2, -1), sin.unsqueeze(-2) * sign
    return c.flatten(-2).unsqueeze(-2), s.flatten(-2).unsqueeze(-2)


class RotatedNorm(torch.autograd.Function):
    """See `rotated_norm`. Turning keeps the norm of a head, so that one factor serves both."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
        """x: (B, T, H, D); cos, sin: (T, D/2) or (B, T, D/2) → (B, T, H, D)."""
        wide, (c, s) = _wide(x), _tables(cos, sin)
        factor = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
        y = _narrow(factor * (wide * c + _swapped(wide) * s), x.dtype)
        ctx.save_for_backward(y, factor, cos, sin)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None, None]:
        """The norm's gradient, turned back."""
        y, factor, cos, sin = ctx.saved_tensors
        g, wide, (c, s) = _wide(upstream[0]), _wide(y), _tables(cos, sin)
        mean = (g * wide).mean(dim=-1, keepdim=True)
        turned_back = (g - wide * mean) * c - (_swapped(g) - _swapped(wide) * mean) * s
        return (factor * turned_back).to(y.dtype), None, None, None


class ReluSquared(torch.autograd.Function):
    """See `relu_squared`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """x and the result of one shape."""
        y = x.relu().square()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> Tensor:
        """2 · √y · g."""
        (y,) = ctx.saved_tensors
        return (2 * _wide(y).sqrt() * upstream[0]).to(y.dtype)
