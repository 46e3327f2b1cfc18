"""Matrix products in eight bits (FP8 formats for deep learning, arXiv 2209.05433): twice the speed of bf16 where a chip has them.

Inputs and weights are e4m3, upstream gradients e5m2, each with one scale for a whole tensor, taken anew from its largest value; sums
and results are of the compute dtype's precision or better. Only the layers' six products are made so: embedding, head, norms,
attention, and everything the optimizer holds stay as they are.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nanochat.model.gpt import GPT

INPUT, GRADIENT = torch.float8_e4m3fn, torch.float8_e5m2
SMALLEST = 1e-12  # the least value that a tensor's largest counts as: one of zeros alone gets a scale too
MULTIPLE = 16  # what both dimensions of a weight must divide by


def quantized(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x in an fp8 dtype, and the float32 scalar that it is to be multiplied by: x ≈ eight · scale. No value overflows."""
    largest = torch.finfo(dtype).max
    scale = x.abs().amax().float().clamp(min=SMALLEST) / largest
    return (x.float() / scale).clamp(-largest, largest).to(dtype), scale


def _product(a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, dtype: torch.dtype, fast: bool) -> Tensor:
    """a: (n, k) in rows times b: (k, m) in columns, which is how the hardware wants them → (n, m).

    fast: sum in the tensor cores' own, shorter registers.
    """
    return torch._scaled_mm(a, b, scale_a=a_scale, scale_b=b_scale, out_dtype=dtype, use_fast_accum=fast)


def _turned(x: Tensor) -> Tensor:
    """The transpose of a matrix, in rows."""
    return x.t().clone(memory_format=torch.contiguous_format)


class Fp8Product(torch.autograd.Function):
    """x · weightᵀ with both in fp8, and so are both of its gradients' products."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, fast: bool = False, kept: Tensor | None = None, kept_scale: Tensor | None = None
    ) -> Tensor:
        """x: (n, in), weight: (out, in), of one dtype → (n, out) in it. fast: whether the gradients' sums are the short ones too.

        kept, kept_scale: the weight as `quantized` made it before, where it has.
        """
        x8, x_scale = quantized(x, INPUT)
        w8, w_scale = quantized(weight, INPUT) if kept is None or kept_scale is None else (kept, kept_scale)
        ctx.save_for_backward(x8, x_scale, weight if kept is None else w8, w_scale)
        ctx.fast, ctx.dtype = fast, weight.dtype
        return _product(x8, x_scale, w8.t(), w_scale, x.dtype, fast=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        """Both gradients in the compute dtype. The weight is made eight bits again, with the scale that it had: keeping it costs more."""
        x8, x_scale, weight, w_scale = ctx.saved_tensors
        dtype, fast = ctx.dtype, ctx.fast
        g8, g_scale = quantized(upstream[0], GRADIENT)
        # A kept one plus 0, but of the gradient: or the compiler would turn it in the forward pass, and keep that too.
        kept = weight.dtype == INPUT
        w8 = (weight.view(torch.uint8) + g_scale.isnan()).view(INPUT) if kept else (weight.float() / w_scale).to(INPUT)
        d_x = _product(g8, g_scale, _turned(w8).t(), w_scale, dtype, fast)
        d_weight = _product(_turned(g8), g_scale, _turned(x8).t(), x_scale, dtype, fast)
        return d_x, d_weight, None, None, None


class Fp8Linear(nn.Linear):
    """A layer without bias whose products are made in fp8."""

    fast: bool
    kept: Tensor | None
    """The weight in eight bits, where it is kept from one micro-batch of a step to the next."""
    kept_scale: Tensor | None
    """Its scale."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (…, in) → (…, out)."""
        if not torch.is_grad_enabled():  # evaluations and samples, whose few tokens gain nothing
            return super().forward(x)
        product: Tensor = Fp8Product.apply(x.flatten(0, -2), self.weight, self.fast, self.kept, self.kept_scale)
        return product.view(*x.shape[:-1], -1)


def use_fp8(model: GPT, fast: bool = False) -> None:
    """Let the products inside the model's layers be made in fp8, in place. Raises ValueError where their sizes do not allow it.

    fast: let gradients be summed in the tensor cores' shorter registers, as the forward products are.
    """
    for module in model.model.layers.modules():
        if isinstance(module, nn.Linear):
            if module.in_features % MULTIPLE or module.out_features % MULTIPLE:
                raise ValueError(f"fp8 needs sizes that divide by {MULTIPLE}, not {module.out_features} × {module.in_features}")
            module.__class__ = Fp8Linear
            module.__dict__ |= {"fast": fast, "kept": None, "kept_scale": None}


class WeightsKept:
    """Weights in eight bits for all micro-batches of a step, made by the first: a byte for each of them, on every rank."""

    def __init__(self, model: GPT, compiled: bool):
        """From now on each layer's forward pass makes them when a step begins. Call it last: what it wraps may be compiled."""
        self._quantized = torch.compile(quantized, dynamic=False) if compiled else quantized
        self._stale: set[Fp8Linear] = set()
        self._all: list[Fp8Linear] = []
        for block in model.model.layers:
            inside = [module for module in block.modules() if isinstance(module, Fp8Linear)]
            self._all += inside
            for layer in inside:  # as buffers, which the compiler knows to stay where they are: it keeps no copies of them
                del layer.kept, layer.kept_scale
                layer.register_buffer("kept", torch.empty_like(layer.weight, dtype=INPUT), persistent=False)
                layer.register_buffer("kept_scale", torch.empty_like(layer.weight[0, 0], dtype=torch.float32), persistent=False)
            block.forward = partial(self._forward, block.forward, inside)
        self.renew()

    def renew(self) -> None:
        """The weights are about to change, or have."""
        self._stale.update(self._all)

    def _forward(self, forward: Callable[..., Tensor], inside: list[Fp8Linear], *args: Any) -> Tensor:
        if torch.is_grad_enabled():
            for layer in self._stale.intersection(inside):
                self._make(layer)
        return forward(*args)

    @torch.no_grad()
    def _make(self, layer: Fp8Linear) -> None:
        assert layer.kept is not None
        assert layer.kept_scale is not None
        made, scale = self._quantized(layer.weight, INPUT)
        layer.kept.copy_(made)
        layer.kept_scale.copy_(scale)
        self._stale.discard(layer)
