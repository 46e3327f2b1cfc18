"""A model whose weights are shared out over the ranks of a node and copied to every node (FSDP2, arXiv 2304.11277).

Masters, gradients and the optimizer's state are float32 shards; a layer's weights are brought together in the compute dtype
when it needs them, and its gradients are reduced to the shards after every micro-batch.
"""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from nanochat.model.attention import attention_by_products
from nanochat.model.config import GPTConfig
from nanochat.model.fp8_layers import KeptForAStep, use_fp8
from nanochat.model.fused_mlp import use_fused_mlp
from nanochat.model.gpt import GPT, Block
from nanochat.model.init import init_weights, initial_std
from nanochat.parallel.compiling import compile_model
from nanochat.parallel.ranks import Ranks
from nanochat.parallel.recomputing import apply_recompute
from nanochat.plan.recipe import Recipe
from nanochat.plan.recompute import Recompute

ROWS_AT_ONCE = 8192  # that the first rank sends to all


def rows_held(parameter: Tensor) -> tuple[Tensor, int]:
    """The rows of a parameter that this rank holds, (rows, …), and the number of the first of them."""
    if not isinstance(parameter, DTensor):
        return parameter, 0
    mesh = parameter.device_mesh
    chunk = -(-parameter.size(0) // mesh.size(mesh.ndim - 1))
    return parameter.to_local(), min(chunk * mesh.get_local_rank(mesh.ndim - 1), parameter.size(0))


@torch.no_grad()
def begin_with(parameter: Tensor, rows: Tensor | None, ranks: Ranks) -> None:
    """Give a matrix the first rank's rows, (n, columns) on its device, each rank those that it holds; where one is zero it stays as it is.

    rows: None on all other ranks.
    """
    held, first = rows_held(parameter)
    for start in range(0, parameter.size(0), ROWS_AT_ONCE):
        end = min(start + ROWS_AT_ONCE, parameter.size(0))
        some = held.new_empty(end - start, held.size(1)) if rows is None else rows[start:end].contiguous()
        ranks.broadcast_(some)
        low, high = max(first, start), min(first + held.size(0), end)
        if low < high:
            given, ours = some[low - start : high - start], held[low - first : high - first]
            ours.copy_(torch.where((given != 0).any(dim=1, keepdim=True), given, ours))


def shard(model: GPT, mesh: DeviceMesh, compute_dtype: torch.dtype, reshard: bool) -> None:
    """Share out the parameters over the mesh, in place; layer by layer, the embedding and the head each a group of its own.

    reshard: whether a layer's whole weights are given up after its forward pass and brought together again for the backward
    pass. The head's are not: its backward pass follows at once.
    """
    policy = MixedPrecisionPolicy(
        param_dtype=None if compute_dtype == torch.float32 else compute_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for module in (model.model.embed_tokens, *model.model.layers):
        fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard)
    fully_shard(model.lm_head, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)


def reshard(model: GPT) -> None:
    """Give up whole weights that a forward pass without a backward pass has left, so that parameters are shards again."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@contextlib.contextmanager
def whole_weights(model: GPT, resharding: bool) -> Iterator[None]:
    """Within it every rank holds all weights, in the compute dtype: forward passes then need no other rank. Every rank enters it.

    resharding: whether training gives up a layer's whole weights after its forward pass, which it does again afterwards.
    """
    groups = [module for module in model.modules() if isinstance(module, FSDPModule)]
    try:
        for group in groups:
            group.set_reshard_after_forward(False, recurse=False)
            group.unshard()
        yield
    finally:
        for group in groups:
            group.reshard()
        for layer in (model.model.embed_tokens, *model.model.layers):
            assert isinstance(layer, FSDPModule)
            layer.set_reshard_after_forward(resharding, recurse=False)


def set_is_last_backward(model: GPT, last: bool) -> None:
    """Whether the next backward pass ends the step: until then reductions need not be waited for."""
    assert isinstance(model, FSDPModule)
    model.set_is_last_backward(last)


def clip_gradients(model: GPT, max_norm: float) -> Tensor:
    """Scale all gradients so that their norm over all ranks is at most `max_norm` (0: no limit); returns the norm before that."""
    parameters = list(model.parameters())
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    if max_norm:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


def sharded_model(
    config: GPTConfig,
    ranks: Ranks,
    mesh: DeviceMesh,
    compute_dtype: torch.dtype,
    seed: int,
    *,
    recompute: Recompute,
    reshard: bool,
    recipe: Recipe,
    fp8: bool = False,
    std_of: Callable[[str, Tensor], float] = initial_std,
) -> GPT:
    """A new model, shared out, ready for training; no process ever holds more of the masters than its shards."""
    with torch.device("meta"):
        model = GPT(config)
    if recipe.attention == "products":
        for block in model.model.layers:
            assert isinstance(block, Block)
            block.attend = attention_by_products
    if recipe.mlp == "fused" and not fp8:
        use_fused_mlp(model)
    if fp8:
        use_fp8(model, fast=recipe.fp8_sums == "short", fused=recipe.fp8_casts == "fused", finishes=recipe.fp8_mlp == "fused")
    apply_recompute(model, recompute)
    if recipe.compile != "off":
        compile_model(model, tuned=recipe.compile == "tuned")
    keeps = {"weights": recipe.fp8_weights == "kept", "scales": recipe.fp8_scales == "kept"}
    if fp8 and any(keeps.values()):
        model.kept_for_a_step = KeptForAStep(model, compiled=recipe.compile != "off", **keeps)
    shard(model, mesh, compute_dtype, reshard)
    model.to_empty(device=ranks.device)
    model.model.init_rotary()
    init_weights(model, seed, rows_held, std_of)
    return model
