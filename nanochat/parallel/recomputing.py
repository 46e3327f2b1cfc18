"""What a layer computes again in its backward pass, applied to the layers of a model from outside."""

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from nanochat.model.gpt import GPT
from nanochat.plan.recompute import Recompute

aten = torch.ops.aten
ATTENTION = frozenset(
    getattr(aten, name).default
    for name in (
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_cudnn_attention",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_fused_attention_overrideable",
    )
    if hasattr(aten, name)
)

PRODUCTS = frozenset((aten.mm.default, aten._scaled_mm.default))  # of bf16 and float32, of fp8

Forward = Callable[..., Tensor]


def _policy(level: str, widening: tuple[int, int], _context: Any, op: Any, *args: Any, **_kwargs: Any) -> CheckpointPolicy:
    """Keep the results of matrix products and of attention; at `mlp` not those of the product that widens (d, 4d)."""
    if level == "block":
        return CheckpointPolicy.MUST_RECOMPUTE
    widens = op in PRODUCTS and tuple(args[1].shape) == widening
    if op in ATTENTION or (op in PRODUCTS and not (level == "mlp" and widens)):
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


def recomputing(forward: Forward, level: str, widening: tuple[int, int]) -> Forward:
    """A layer's forward that keeps for its backward pass only what `level` says (see plan.recompute).

    widening: (d, 4d), by which the first product of the MLP is known.
    """
    if level == "none":
        return forward
    contexts = functools.partial(create_selective_checkpoint_contexts, functools.partial(_policy, level, widening))

    def checkpointed(x: Tensor, *args: Any) -> Tensor:
        if not torch.is_grad_enabled():
            return forward(x, *args)
        result: Tensor = checkpoint(forward, x, *args, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)
        return result

    return checkpointed


def apply_recompute(model: GPT, recompute: Recompute) -> None:
    """Let every layer of the model recompute what the plan says."""
    config = model.config
    logging.getLogger("torch._higher_order_ops.wrap").setLevel(logging.ERROR)  # warns of in-place operations; layers have none
    for number, block in enumerate(model.model.layers):
        block.forward = recomputing(block.forward, recompute.of_layer(number), (config.hidden_size, config.intermediate_size))
