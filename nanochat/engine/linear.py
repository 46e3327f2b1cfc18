"""Linear layers for answering: a lone token at the memory's speed, weights of eight bits."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanochat.model.gpt import GPT
from nanochat.model.loss import softcap

PACKED_ROWS = 32  # up to here the product that reads int8 beats one that widens the weights first, on two cores


# An operator of its own, for Inductor takes oneDNN's only with weights that are constants.
torch.library.define("nanochat::onednn_linear", "(Tensor x, Tensor weight) -> Tensor")


@torch.library.impl("nanochat::onednn_linear", "CPU")
def _onednn_linear(x: Tensor, weight: Tensor) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return product


@torch.library.register_fake("nanochat::onednn_linear")
def _onednn_linear_shape(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.size(0)))


class DecodingLinear(nn.Module):
    """A layer without bias whose products with few tokens run at the speed at which memory gives the weights.

    With one token it compiles to a single pass over the weights. With more, float32 on a CPU goes to oneDNN, which is twice as fast
    as the library that `F.linear` calls there.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.weight = linear.weight
        float32_on_cpu = self.weight.device.type == "cpu" and self.weight.dtype == torch.float32
        self.by_onednn = float32_on_cpu and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")

    def forward(self, x: Tensor) -> Tensor:
        """x: (…, in) → (…, out)."""
        if torch.compiler.is_compiling() and x.numel() == self.weight.size(1):
            return (self.weight.float() * x.flatten().float()).sum(dim=-1).to(x.dtype).view(*x.shape[:-1], -1)
        if self.by_onednn:
            product: Tensor = torch.ops.nanochat.onednn_linear(x, self.weight)
            return product
        return F.linear(x, self.weight)


class Int8Linear(nn.Module):
    """A layer without bias whose weights are int8 times a scale for each row, rounded to nearest."""

    weight: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear):
        super().__init__()
        largest = linear.weight.float().abs().amax(dim=1)
        scale = torch.where(largest > 0, largest / 127, 1.0).bfloat16()
        self.register_buffer("weight", (linear.weight.float() / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8))
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        """x: (…, in) → (…, out)."""
        rows = x.numel() // x.size(-1)
        if x.device.type == "cpu" and rows <= PACKED_ROWS:
            packed = torch._weight_int8pack_mm(x.reshape(rows, -1).bfloat16(), self.weight, self.scale)
            return packed.to(x.dtype).view(*x.shape[:-1], -1)
        if torch.compiler.is_compiling() and rows == 1:
            return ((self.weight.float() * x.flatten().float()).sum(dim=-1) * self.scale.float()).to(x.dtype).view(*x.shape[:-1], -1)
        return F.linear(x, self.weight.to(x.dtype)) * self.scale.to(x.dtype)


class DecodingHead(nn.Module):
    """The head with one of these layers: logits only."""

    def __init__(self, product: nn.Module, cap: float):
        super().__init__()
        self.product, self.cap = product, cap

    def forward(self, hidden: Tensor, *_nothing: Any) -> Tensor:
        """hidden: (…, d) → soft-capped logits (…, V) in float32."""
        return softcap(self.product(hidden).float(), self.cap)


@torch.no_grad()
def for_decoding(model: GPT, int8: bool = False) -> GPT:
    """The model with its linear layers replaced, in place, by those that answer fast; it can no longer be trained or saved.

    int8: keep their weights in a byte each, rounded, instead of as they are.
    """
    kind = Int8Linear if int8 else DecodingLinear
    for module in list(model.model.layers.modules()):
        for name, layer in list(module.named_children()):
            if isinstance(layer, nn.Linear):
                setattr(module, name, kind(layer))
    model.lm_head = DecodingHead(kind(model.lm_head), model.lm_head.logit_softcap)  # type: ignore[assignment]
    return model
