"""What autograd really keeps of a layer, against the memory model; and the same losses and gradients at every level."""

import functools
from collections.abc import Iterator

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor.decomposition import select_decomp_table
from torch._subclasses import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from nanochat.model.attention import attention_by_products
from nanochat.model.config import GPTConfig
from nanochat.model.gpt import GPT, Block
from nanochat.model.init import init_weights
from nanochat.parallel.compiling import compile_model
from nanochat.parallel.recomputing import apply_recompute, recompute_in
from nanochat.plan.recompute import LEVELS, Recompute, saved_bytes_per_token
from nanochat.plan.sizes import Shape

# Dynamo traces and AOTAutograd partitions as for Inductor, but nothing is compiled: tensors of the true sizes are only described.
PARTITIONED = aot_autograd(
    fw_compiler=lambda graph, _inputs: graph,
    bw_compiler=lambda graph, _inputs: graph,
    partition_fn=functools.partial(min_cut_rematerialization_partition, compiler="inductor"),
    decompositions=select_decomp_table(),
)


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def kept_bytes(block: Block, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, level: str, backend: object) -> int:
    """Bytes of the storages that one layer keeps for its backward pass, its input counted in, weights and rotary table left out."""
    recompute_in(block, level)
    forward = block.forward
    if backend:
        forward = torch.compile(forward, backend=backend, fullgraph=True, dynamic=False)
    kept: list[torch.Tensor] = []
    with saved_tensors_hooks(lambda tensor: (kept.append(tensor), tensor)[1], lambda tensor: tensor):
        result = forward(x, cos, sin)
    assert result.requires_grad
    others = {t.untyped_storage()._cdata for t in (*block.parameters(), cos, sin)}
    table = [t.untyped_storage() for t in kept if t.numel() == cos.numel()]  # the rotary table in the compute dtype is every layer's
    others |= {storage._cdata for storage in table}
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in kept}
    return sum(size for storage, size in storages.items() if storage not in others)


def layer_in_bf16(config: GPTConfig) -> Block:
    """A layer whose weights are bf16, as sharding brings them together."""
    block = Block(config, 0)
    for module in block.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight = torch.nn.Parameter(torch.empty(module.weight.shape, dtype=torch.bfloat16))
    return block


CONFIGURATIONS = [(12, 8, 1024), (12, 32, 2048), (20, 16, 2048), (32, 8, 2048), (38, 8, 2048), (38, 12, 2048), (52, 4, 2048), (52, 6, 4096)]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("depth", "micro_batch_size", "seq_len"), CONFIGURATIONS)
def test_the_memory_model_counts_what_autograd_keeps(level: str, depth: int, micro_batch_size: int, seq_len: int) -> None:
    config = GPTConfig.from_depth(depth, 65_536, seq_len)
    with FakeTensorMode():
        block = layer_in_bf16(config)
        x = torch.empty(micro_batch_size, seq_len, config.hidden_size, dtype=torch.bfloat16, requires_grad=True)
        cos, sin = torch.empty(2, seq_len, config.head_dim // 2).unbind()
        got = kept_bytes(block, x, cos, sin, level, PARTITIONED)
    want = micro_batch_size * seq_len * saved_bytes_per_token(Shape(depth, 65_536, seq_len), level, 2)
    assert got == pytest.approx(want, rel=0.01)


@pytest.mark.parametrize(("depth", "micro_batch_size", "seq_len"), [(4, 8, 512), (12, 2, 1024), (4, 3, 500)])
@pytest.mark.parametrize("level", LEVELS)
def test_attention_by_products_keeps_its_weights(level: str, depth: int, micro_batch_size: int, seq_len: int) -> None:
    config = GPTConfig.from_depth(depth, 4096, seq_len)
    with FakeTensorMode():
        block = layer_in_bf16(config)
        block.attend = attention_by_products
        x = torch.empty(micro_batch_size, seq_len, config.hidden_size, dtype=torch.bfloat16, requires_grad=True)
        cos, sin = torch.empty(2, seq_len, config.head_dim // 2).unbind()
        got = kept_bytes(block, x, cos, sin, level, PARTITIONED)
    want = micro_batch_size * seq_len * saved_bytes_per_token(Shape(depth, 4096, seq_len), level, 2, by_products=True)
    assert got == pytest.approx(want, rel=0.03)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("level", LEVELS)
def test_real_tensors_of_float32_are_kept_as_the_model_says(level: str, compiled: bool) -> None:
    config = GPTConfig.from_depth(2, 300, 96)
    block = Block(config, 0)
    x = torch.randn(3, 96, config.hidden_size, requires_grad=True)
    cos, sin = torch.randn(2, 96, config.head_dim // 2).unbind()
    got = kept_bytes(block, x, cos, sin, level, "inductor" if compiled else None)
    want = 3 * 96 * saved_bytes_per_token(Shape(2, 300, 96), level, 4)
    assert got == pytest.approx(want, rel=0.05)


def test_losses_and_gradients_are_the_same_at_every_level() -> None:
    results = []
    generator = torch.Generator().manual_seed(0)
    ids, targets = torch.randint(0, 300, (2, 2, 32), generator=generator)
    for recompute, compiled in [
        (Recompute(0, 2), False),
        *((Recompute(level, 1), True) for level in (1, 2)),
        (Recompute(1, 2), False),
        (Recompute(2, 2), False),
    ]:
        model = GPT(GPTConfig.from_depth(2, 300, 32))
        init_weights(model, 0, std_of=lambda name, parameter: 0.1)
        apply_recompute(model, recompute)
        if compiled:
            compile_model(model)
        loss = model(ids, targets)
        loss.backward()
        results.append((loss.detach(), {name: p.grad for name, p in model.named_parameters()}))
    (plain, plain_gradients), *others = results
    for loss, gradients in others:
        torch.testing.assert_close(loss, plain, rtol=1e-5, atol=0)
        for name, gradient in plain_gradients.items():
            assert gradient.norm() > 0, name
            assert (gradients[name] - gradient).norm() < 1e-4 * gradient.norm(), name
