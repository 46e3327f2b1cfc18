"""Muon and the schedules against plain float64 references."""

import pytest
import torch

from nanochat.model.config import GPTConfig
from nanochat.model.gpt import GPT
from nanochat.optim.build import Optimizers
from nanochat.optim.newton_schulz import orthogonalize
from nanochat.optim.schedules import lr_scale, muon_momentum
from nanochat.optim.settings import OptimizerSettings


@pytest.mark.parametrize("shape", [(3, 64, 64), (2, 32, 128), (2, 128, 32)])
def test_singular_values_come_near_one_along_the_same_directions(shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, singular, vh = torch.linalg.svd(matrices.double(), full_matrices=False)
    result = orthogonalize(matrices, torch.float32).double()
    values = u.mT @ result @ vh.mT
    diagonal = values.diagonal(dim1=-2, dim2=-1)
    large = singular / singular.square().sum(-1, keepdim=True).sqrt() > 0.01  # five steps lift nothing smaller all the way
    assert diagonal[large].min() > 0.6
    assert diagonal.max() < 1.3
    assert (values - torch.diag_embed(diagonal)).abs().max() < 1e-4


def newton_schulz_float64(x: torch.Tensor) -> torch.Tensor:
    """One matrix at a time, as it is written down."""
    x = x.double()
    transposed = x.shape[0] > x.shape[1]
    x = x.T if transposed else x
    x = x / x.norm()
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
    return x.T if transposed else x


def test_updates_are_those_of_the_formulas() -> None:
    model = GPT(GPTConfig.from_depth(2, 300, 16))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    settings = OptimizerSettings(weight_decay=0.1, warmdown_ratio=0.4)
    optimizers = Optimizers(model, settings, torch.float32)
    want = {name: p.detach().double().clone() for name, p in model.named_parameters()}
    memory: dict[str, list[torch.Tensor]] = {name: [torch.zeros_like(w), torch.zeros_like(w)] for name, w in want.items()}
    for step in range(4):
        scale = lr_scale(step, 5, 0.0, 0.4, 0.0)
        for name, parameter in model.named_parameters():
            g = torch.randn(parameter.shape, generator=generator)
            parameter.grad, g = g.clone(), g.double()
            first, second = memory[name]
            if "layers" in name:
                m = muon_momentum(step)
                first.mul_(m).add_(g, alpha=1 - m)
                rows, columns = g.shape
                update = newton_schulz_float64((1 - m) * g + m * first)
                want[name] -= 0.02 * scale * max(1, rows / columns) ** 0.5 * update
            else:
                lr = (0.2 if "embed" in name else 0.004) * (128 / 768) ** -0.5 * scale
                first.mul_(0.8).add_(g, alpha=0.2)
                second.mul_(0.95).add_(g * g, alpha=0.05)
                corrected = (second / (1 - 0.95 ** (step + 1))).sqrt() + 1e-10
                want[name] *= 1 - lr * 0.1
                want[name] -= lr * (first / (1 - 0.8 ** (step + 1))) / corrected
        assert optimizers.step(step, 5) == scale
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach().double(), want[name], rtol=1e-5, atol=1e-5, msg=name)


def test_learning_rates_rise_hold_and_fall() -> None:
    scales = [lr_scale(step, 10, 0.2, 0.5, 0.1) for step in range(10)]
    assert scales == pytest.approx([0.5, 1, 1, 1, 1, 1, 0.82, 0.64, 0.46, 0.28])
    assert [lr_scale(step, 100, 0, 0.2, 0) for step in (0, 80, 90, 99)] == pytest.approx([1, 1, 0.5, 0.05])


def test_momentum_rises_over_300_steps() -> None:
    assert [muon_momentum(step) for step in (0, 150, 300, 9999)] == pytest.approx([0.85, 0.9, 0.95, 0.95])
