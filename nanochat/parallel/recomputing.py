"""What a layer computes again in its backward pass, applied to the layers of a model from outside."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from nanochat.model.gpt import GPT, Block
from nanochat.plan.recompute import Recompute

Forward = Callable[..., Tensor]


def recomputing(forward: Forward) -> Forward:
    """The same, but all that is kept for the backward pass is what goes in (arXiv 1604.06174)."""

    def checkpointed(*args: Any) -> Tensor:
        if not torch.is_grad_enabled():
            return forward(*args)
        result: Tensor = checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False)
        return result

    return checkpointed


def recompute_in(block: Block, level: str) -> None:
    """Let a layer compute again what `level` says (see plan.recompute), in place."""
    if level == "mlp":
        block.mlp.forward = recomputing(block.mlp.forward)  # type: ignore[method-assign]
    if level == "block":
        block.forward = recomputing(block.forward)  # type: ignore[method-assign]


def apply_recompute(model: GPT, recompute: Recompute) -> None:
    """Let every layer of the model recompute what the plan says."""
    logging.getLogger("torch._higher_order_ops.wrap").setLevel(logging.ERROR)  # warns of in-place operations; layers have none
    for number, block in enumerate(model.model.layers):
        assert isinstance(block, Block)
        recompute_in(block, recompute.of_layer(number))
