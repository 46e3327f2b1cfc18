"""A model's layers with their products in fp8, applied from outside, and what is kept of a step's first micro-batch for the others."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanochat.model.casts import INPUT
from nanochat.model.elementwise import relu_squared
from nanochat.model.fp8 import Fp8Products, quantized_together, scale_of_norms
from nanochat.model.fp8_mlp import Fp8MLP
from nanochat.model.gpt import GPT, Block

MULTIPLE = 16  # what both dimensions of a weight must divide by


class Weights(nn.Module):
    """The weights of layers that read the same, which stay the layers'; in eight bits too, where they are kept for a step."""

    def __init__(self, *layers: nn.Linear):
        super().__init__()
        for layer in layers:
            if layer.in_features % MULTIPLE or layer.out_features % MULTIPLE:
                raise ValueError(f"fp8 needs sizes that divide by {MULTIPLE}, not {layer.out_features} × {layer.in_features}")
        self.layers = layers  # a tuple, so that they are not modules of this one: the state dict has them once
        self.kept: Tensor | None = None
        self.kept_scale: Tensor | None = None

    def now(self) -> tuple[Tensor, ...]:
        """Of each layer (out, in)."""
        return tuple(layer.weight for layer in self.layers)

    def keep(self) -> None:
        """Make room for them in eight bits, (Σout, in): buffers, which the compiler knows to stay where they are and never copies."""
        del self.kept, self.kept_scale
        first, rows = self.layers[0].weight, sum(layer.out_features for layer in self.layers)
        self.register_buffer("kept", first.new_empty(rows, first.size(1), dtype=INPUT), persistent=False)
        self.register_buffer("kept_scale", first.new_empty((), dtype=torch.float32), persistent=False)


class InEightBits(nn.Module):
    """What computes products in fp8 in some layers' place. Evaluations and samples, whose few tokens gain nothing, are left alone."""

    def __init__(self, *weights: Weights, values: int, fast: bool, fused: bool, of_norm: bool, finishes: bool = False):
        """values: how many largest values scales are made of. of_norm: whether a norm gives the input. finishes: as Fp8MLP has it."""
        super().__init__()
        self.registered = nn.ModuleList(weights)  # for their buffers
        self.of = weights
        self.values, self.fast, self.fused, self.finishes = values, fast, fused, finishes
        self.fixed = scale_of_norms(weights[0].layers[0].in_features) if of_norm else None
        self.largest: Tensor | None = None
        """Where scales are kept for a step: what they are made of, (values,) float32, and what is found as its gradient."""
        self.first = True
        """Whether this is the micro-batch of a step that finds them."""
        self.known = False
        """Whether all were found once."""

    def products(self, x: Tensor) -> tuple[Tensor, ...]:
        """x: (…, in) → (…, out) of each layer."""
        (of,) = self.of
        weights = of.now()
        if not torch.is_grad_enabled():
            return tuple(F.linear(x, weight) for weight in weights)
        results = Fp8Products.apply(
            x.flatten(0, -2), of.kept, of.kept_scale, self.largest, self.fixed, self.first, self.fast, self.fused, *weights
        )
        return tuple(y.view(*x.shape[:-1], -1) for y in results)

    def one_product(self, x: Tensor) -> Tensor:
        """x: (…, in) → (…, out) of the one layer."""
        return self.products(x)[0]

    def mlp(self, x: Tensor) -> Tensor:
        """x: (…, d), what a norm gives → (…, d)."""
        into, out = self.of
        weights = (*into.now(), *out.now())
        if not torch.is_grad_enabled():
            return F.linear(relu_squared(F.linear(x, weights[0])), weights[1])
        kept = (into.kept, into.kept_scale, out.kept, out.kept_scale)
        how = (self.fixed, self.first, self.fast, self.fused, self.finishes)
        y: Tensor = Fp8MLP.apply(x.flatten(0, -2), *kept, self.largest, *how, *weights)
        return y.view(x.shape)


def use_fp8(model: GPT, fast: bool = False, fused: bool = False, finishes: bool = False) -> None:
    """Let the products inside the model's layers be made in fp8, in place. Raises ValueError where their sizes do not allow it.

    fast: let gradients be summed in the tensor cores' shorter registers, as the forward products are. fused: cast by kernels of our own.
    finishes: where scales are known beforehand, let the MLP's products end with relu² and its gradient, in eight bits.
    """
    for block in model.model.layers:
        assert isinstance(block, Block)
        attention, mlp = block.self_attn, block.mlp
        of_qkv = Weights(attention.q_proj, attention.k_proj, attention.v_proj)
        qkv = InEightBits(of_qkv, values=3, fast=fast, fused=fused, of_norm=True)
        o = InEightBits(Weights(attention.o_proj), values=3, fast=fast, fused=fused, of_norm=False)
        both = InEightBits(Weights(mlp.fc1), Weights(mlp.fc2), values=5, fast=fast, fused=fused, of_norm=True, finishes=finishes)
        block.in_eight_bits = nn.ModuleList((qkv, o, both))
        attention.projected = qkv.products  # type: ignore[method-assign]
        attention.o_proj.forward = o.one_product  # type: ignore[method-assign, assignment]
        mlp.forward = both.mlp  # type: ignore[method-assign]


class KeptForAStep:
    """What products in fp8 take over from a step's first micro-batch to the others: weights in eight bits, scales, or both."""

    def __init__(self, model: GPT, compiled: bool, weights: bool = False, scales: bool = False):
        """Call it last: what it wraps may be compiled.

        weights: a byte for each of them, on every rank, made as a layer first needs them. scales: of inputs, gradients and weights.
        """
        self._quantized = torch.compile(quantized_together, dynamic=False) if compiled else quantized_together
        self._keeps_scales = scales
        self._stale: set[Weights] = set()
        self._weights = [each for each in model.modules() if isinstance(each, Weights)] if weights else []
        self._products = [each for each in model.modules() if isinstance(each, InEightBits)]
        for each in self._weights:
            each.keep()
        for block in model.model.layers:
            inside = [each for each in block.modules() if isinstance(each, InEightBits)]
            block.forward = partial(self._forward, block.forward, inside)
        self.renew()

    def renew(self) -> None:
        """A step begins: the weights are about to change, or have."""
        self._stale.update(self._weights)
        for each in self._products:
            each.first = True
            if each.largest is not None:
                each.largest.grad = None

    def _forward(self, forward: Callable[..., Tensor], inside: list[InEightBits], *args: Any) -> Tensor:
        if torch.is_grad_enabled():
            for products in inside:
                if self._keeps_scales:
                    self._take_scales(products)
                for weights in self._stale.intersection(products.of):
                    self._make(weights)
        return forward(*args)

    @torch.no_grad()
    def _make(self, weights: Weights) -> None:
        assert weights.kept is not None
        assert weights.kept_scale is not None
        made, scale = self._quantized(weights.now())
        weights.kept.copy_(made)
        weights.kept_scale.copy_(scale)
        self._stale.discard(weights)

    @torch.no_grad()
    def _take_scales(self, products: InEightBits) -> None:
        """Where the first micro-batch's backward pass has found the largest values, let scales be made of those from now on."""
        if products.largest is None:
            device = products.of[0].layers[0].weight.device
            products.largest = torch.zeros(products.values, device=device, requires_grad=True)
        elif products.first and products.largest.grad is not None:
            # Answers none of which is better than another have no gradient, and say nothing of others': the step before is gone by, or,
            # where there was none, the next micro-batch, which alone the host waits for.
            found, products.largest.grad = products.largest.grad, None
            products.known = products.known or bool((found > 0).all())
            products.first = not products.known
            products.largest.copy_(torch.where(found > 0, found, products.largest))
