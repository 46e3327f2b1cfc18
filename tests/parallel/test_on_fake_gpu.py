"""A layer on a GPU that is only described: devices, shapes and dtypes. Autograd cannot be followed there without a GPU."""

import pytest
import torch
from torch._subclasses import FakeTensorMode

from nanochat.model.config import GPTConfig
from nanochat.model.gpt import GPT
from nanochat.optim.newton_schulz import orthogonalize


def test_a_layer_of_a_true_width_stays_on_the_gpu() -> None:
    with torch.device("meta"):
        model = GPT(GPTConfig.from_depth(38, 65_536, 2048))
    block = model.model.layers[0]
    with FakeTensorMode(), torch.no_grad():
        for module in block.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight = torch.nn.Parameter(torch.empty(module.weight.shape, dtype=torch.bfloat16, device="cuda"))
        x = torch.empty(2, 2048, 2432, dtype=torch.bfloat16, device="cuda")
        cos, sin = torch.empty(2, 2048, 64, device="cuda").unbind()
        y = block(x, cos, sin)
        assert (y.device.type, y.dtype, y.shape) == ("cuda", torch.bfloat16, x.shape)


@pytest.mark.parametrize("shape", [(3, 2432, 2432), (2, 9728, 2432), (2, 2432, 9728)])
def test_matrices_are_orthogonalized_on_the_gpu(shape: tuple[int, ...]) -> None:
    with FakeTensorMode(), torch.no_grad():
        got = orthogonalize(torch.empty(shape, device="cuda"), torch.bfloat16)
        assert (got.device.type, got.dtype, tuple(got.shape)) == ("cuda", torch.bfloat16, shape)
