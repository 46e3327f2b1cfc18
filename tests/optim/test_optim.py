"""Muon and the schedules against plain float64 references."""

from typing import Any

import pytest
import torch

from nanochat.optim import newton_schulz
from nanochat.optim.build import Optimizers
from nanochat.optim.newton_schulz import orthogonalize
from nanochat.optim.schedules import lr_scale, muon_momentum
from nanochat.optim.settings import OptimizerSettings
from tests.optim.reference import Reference, gradient, small_model


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


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"muon_beta2": 0.9},
        {"muon_hold_norm": True},
        {"muon_hold_norm": True, "muon_beta2": 0.9, "scale_lr": True, "adamw_warmdown_ratio": 0.8},
    ],
)
def test_updates_are_those_of_the_formulas(more: dict[str, Any]) -> None:
    model = small_model(2)
    settings = OptimizerSettings(weight_decay=0.1, warmdown_ratio=0.4, **more)
    optimizers = Optimizers(model, settings, torch.float32)
    reference = Reference(model, settings)
    for step in range(4):
        for name, parameter in model.named_parameters():
            parameter.grad = gradient(name, parameter, step)
        assert optimizers.step(step, 5) == reference.step(step, 5)
    # A norm's rounding is a share of the weights, which are fifty times their updates.
    assert max(reference.errors(dict(model.named_parameters())).values()) < (5e-5 if settings.muon_hold_norm else 1e-5)


def test_the_norms_held_are_those_that_were_kept_and_not_those_at_hand() -> None:
    model = small_model(1)
    optimizers = Optimizers(model, OptimizerSettings(muon_hold_norm=True), torch.float32)
    optimizers.init_state()
    kept, new = list(model.model.layers.parameters())[:2]
    began_with = new.norm().item()
    optimizers.muon.state[kept]["norm"].fill_(3.0)  # as a checkpoint has it
    for step in range(2):
        for name, parameter in model.named_parameters():
            parameter.grad = gradient(name, parameter, step)
        optimizers.step(step, 5)
    assert (kept.norm().item(), new.norm().item()) == pytest.approx((3.0, began_with))


def test_learning_rates_rise_hold_and_fall() -> None:
    scales = [lr_scale(step, 10, 0.2, 0.5, 0.1) for step in range(10)]
    assert scales == pytest.approx([0.5, 1, 1, 1, 1, 1, 0.82, 0.64, 0.46, 0.28])
    assert [lr_scale(step, 100, 0, 0.2, 0) for step in (0, 80, 90, 99)] == pytest.approx([1, 1, 0.5, 0.05])


def test_momentum_rises_over_300_steps() -> None:
    assert [muon_momentum(step) for step in (0, 150, 300, 9999)] == pytest.approx([0.85, 0.9, 0.95, 0.95])


@pytest.mark.parametrize("way", ["halves", "gram"])
@pytest.mark.parametrize(("rows", "cols"), [(300, 300), (261, 523), (260, 70), (70, 260), (64, 100)])
def test_every_way_to_orthogonalize_is_the_plain_one_in_float64(way: str, rows: int, cols: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(newton_schulz, "SMALLEST_HALVED", 128)
    matrices = torch.randn(2, rows, cols, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        plain, other = (orthogonalize(matrices, torch.float64, each) for each in ("plain", way))
    torch.testing.assert_close(other, plain, rtol=0, atol=1e-12)


@pytest.mark.parametrize("way", ["plain", "halves", "gram"])
def test_small_singular_values_do_not_run_away_in_bf16(way: str) -> None:
    generator = torch.Generator().manual_seed(0)
    falling = torch.randn(1, 256, 256, generator=generator) * torch.logspace(0, -5, 256)
    matrices = falling @ torch.randn(1, 256, 1024, generator=generator)
    with torch.no_grad():
        values = torch.linalg.svdvals(orthogonalize(matrices, torch.bfloat16, way).double())
    assert values.max() < 1.25
