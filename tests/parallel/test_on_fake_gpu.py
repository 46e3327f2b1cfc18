"""A layer on a GPU that is only described: devices, shapes and dtypes. Autograd cannot be followed there without a GPU."""

from types import SimpleNamespace

import pytest
import torch
from torch._subclasses import FakeTensorMode

from nanochat.model.attention import attention_by_products
from nanochat.model.config import GPTConfig
from nanochat.model.fp8 import INPUT, Fp8Product, quantized, use_fp8
from nanochat.model.gpt import GPT
from nanochat.optim.newton_schulz import orthogonalize


@pytest.mark.parametrize("kind", ["bf16", "fp8, long sums", "fp8, short sums", "products"])
def test_a_layer_of_a_true_width_stays_on_the_gpu(kind: str) -> None:
    with torch.device("meta"):
        model = GPT(GPTConfig.from_depth(38, 65_536, 2048))
    block = model.model.layers[0]
    if kind.startswith("fp8"):
        use_fp8(model, fast="short" in kind)
    if kind == "products":
        block.attend = attention_by_products
    with FakeTensorMode():
        for module in block.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight = torch.nn.Parameter(torch.empty(module.weight.shape, dtype=torch.bfloat16, device="cuda"))
        x = torch.empty(2, 2048, 2432, dtype=torch.bfloat16, device="cuda", requires_grad=True)
        cos, sin = torch.empty(2, 2048, 64, device="cuda").unbind()
        y = block(x, cos, sin)
        assert (y.device.type, y.dtype, y.shape) == ("cuda", torch.bfloat16, x.shape)


@pytest.mark.parametrize("fast", [False, True])
def test_the_gradients_of_a_product_in_fp8_stay_on_the_gpu(fast: bool) -> None:
    with FakeTensorMode(), torch.no_grad():
        x, weight, upstream = (
            torch.empty(*shape, dtype=torch.bfloat16, device="cuda") for shape in ((4096, 2432), (9728, 2432), (4096, 9728))
        )
        (x8, x_scale), (_, w_scale) = quantized(x, INPUT), quantized(weight, INPUT)
        saved = SimpleNamespace(saved_tensors=(x8, x_scale, weight, w_scale), fast=fast)
        d_x, d_weight, _ = Fp8Product.backward(saved, upstream)
        for got, like in ((d_x, x), (d_weight, weight)):
            assert (got.device.type, got.dtype, got.shape) == ("cuda", torch.bfloat16, like.shape)


@pytest.mark.parametrize("shape", [(3, 2432, 2432), (2, 9728, 2432), (2, 2432, 9728)])
def test_matrices_are_orthogonalized_on_the_gpu(shape: tuple[int, ...]) -> None:
    with FakeTensorMode(), torch.no_grad():
        got = orthogonalize(torch.empty(shape, device="cuda"), torch.bfloat16)
        assert (got.device.type, got.dtype, tuple(got.shape)) == ("cuda", torch.bfloat16, shape)
