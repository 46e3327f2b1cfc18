"""Products in fp8: as float64 makes them of the rounded values, near the unrounded ones, compiled and on a described GPU too."""

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

from nanochat.model.config import GPTConfig
from nanochat.model.fp8 import GRADIENT, INPUT, Fp8Linear, Fp8Product, WeightsKept, quantized, use_fp8
from nanochat.model.gpt import GPT
from nanochat.model.init import init_weights
from nanochat.parallel.compiling import compile_model, compiler_missing


def rounded(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    eight, scale = quantized(x, dtype)
    return eight.double() * scale.double()


@pytest.mark.parametrize("dtype", [INPUT, GRADIENT])
def test_values_are_scaled_to_fill_the_range_and_none_overflows(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    for size in (1e-30, 1e-6, 1.0, 3e4):
        x = size * torch.randn(64, 64, generator=generator)
        eight, scale = quantized(x, dtype)
        assert torch.isfinite(eight.float()).all()
        assert float(eight.float().abs().max()) == pytest.approx(torch.finfo(dtype).max if size > 1e-12 else 0, rel=1e-6)
        if size > 1e-12:
            relative = float((rounded(x, dtype) - x).norm() / x.norm())
            assert relative < (0.03 if dtype == INPUT else 0.06)  # a mantissa of three bits, of two
    zeros, scale = quantized(torch.zeros(4, 4), dtype)
    assert not zeros.float().any()
    assert torch.isfinite(scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_and_its_gradients_are_those_of_the_rounded_values(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    x, weight, upstream = (torch.randn(*shape, generator=generator).to(dtype) for shape in ((96, 64), (48, 64), (96, 48)))
    x.requires_grad_()
    weight.requires_grad_()
    y = Fp8Product.apply(x, weight)
    y.backward(upstream)
    x8, w8, g8 = (rounded(*each) for each in ((x.detach(), INPUT), (weight.detach(), INPUT), (upstream, GRADIENT)))
    tolerance = 1e-5 if dtype == torch.float32 else 8e-3
    for got, want in ((y, x8 @ w8.t()), (x.grad, g8 @ w8), (weight.grad, g8.t() @ x8)):
        assert got is not None
        assert got.dtype == dtype
        assert float((got.double() - want).norm() / want.norm()) < tolerance
    exact = x.detach().double() @ weight.detach().double().t()
    assert float((y.double() - exact).norm() / exact.norm()) < 0.05


def model_and_batch() -> tuple[GPT, torch.Tensor, torch.Tensor]:
    model = GPT(GPTConfig.from_depth(2, 300, 64))
    init_weights(model, 0, std_of=lambda _name, p: p.size(1) ** -0.5)
    ids, targets = torch.randint(0, 300, (2, 4, 64), generator=torch.Generator().manual_seed(2))
    return model, ids, targets


@pytest.mark.parametrize(
    "compiled", [False, pytest.param(True, marks=pytest.mark.skipif(bool(compiler_missing(torch.device("cpu"))), reason="no compiler"))]
)
def test_a_model_in_fp8_has_nearly_the_loss_and_the_gradients_of_one_in_float32(compiled: bool) -> None:
    torch._dynamo.reset()
    model, ids, targets = model_and_batch()
    loss = model(ids, targets) / ids.numel()
    loss.backward()
    wanted = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    use_fp8(model)
    if compiled:
        compile_model(model)
    in_fp8 = model(ids, targets) / ids.numel()
    in_fp8.backward()
    assert float(in_fp8) == pytest.approx(float(loss), rel=0.01)
    assert float(in_fp8) != float(loss)
    for name, parameter in model.named_parameters():
        want = wanted[name]
        assert want is not None
        assert parameter.grad is not None
        cosine = torch.nn.functional.cosine_similarity(parameter.grad.flatten(), want.flatten(), dim=0)
        assert float(cosine) > 0.98, name
    with torch.no_grad():  # evaluations are not in fp8
        plain, _, _ = model_and_batch()
        assert torch.allclose(model(ids, targets), plain(ids, targets), rtol=1e-5)


def test_weights_kept_for_a_step_change_nothing_and_follow_the_weights() -> None:
    results = []
    for keeps in (False, True):
        model, ids, targets = model_and_batch()
        use_fp8(model)
        kept = WeightsKept(model, compiled=False) if keeps else None
        seen = []
        for _step in range(2):
            if kept:
                kept.renew()
            for micro in range(2):
                model(ids[micro:], targets[micro:]).backward()
            seen += [p.grad.clone() for p in model.parameters() if p.grad is not None]
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(1.5)
        results.append(seen)
    for made, kept_ones in zip(*results, strict=True):
        assert torch.equal(made, kept_ones)


def test_kept_weights_that_are_not_renewed_are_stale() -> None:
    model, ids, targets = model_and_batch()
    use_fp8(model)
    WeightsKept(model, compiled=False)
    before = float(model(ids, targets))
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            parameter.mul_(2)
    assert float(model(ids, targets)) == before


def test_only_the_layers_products_change_and_their_weights_keep_their_names() -> None:
    model, _, _ = model_and_batch()
    names = list(model.state_dict())
    use_fp8(model)
    assert list(model.state_dict()) == names
    kinds = {name: type(module) for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert kinds.pop("lm_head") is not Fp8Linear
    assert set(kinds.values()) == {Fp8Linear}
    assert len(kinds) == 12
    odd = GPT(GPTConfig(300, 64, 1, 24, 1, 96))
    with pytest.raises(ValueError, match="divide by 16"):
        use_fp8(odd)


class Context:
    """What a product keeps for its backward pass, without autograd, which asks a GPU for its streams."""

    saved_tensors: tuple[torch.Tensor, ...]

    def save_for_backward(self, *tensors: torch.Tensor) -> None:
        self.saved_tensors = tensors


@torch.no_grad()
def test_shapes_and_dtypes_hold_on_a_gpu_that_is_only_described() -> None:
    with FakeTensorMode():
        x = torch.empty(4096, 2432, device="cuda", dtype=torch.bfloat16)
        weight = torch.empty(9728, 2432, device="cuda", dtype=torch.bfloat16)
        context = Context()
        y = Fp8Product.forward(context, x, weight)
        assert (y.shape, y.dtype, y.device.type) == ((4096, 9728), torch.bfloat16, "cuda")
        d_x, d_weight, *_ = Fp8Product.backward(context, torch.empty_like(y))
        assert (d_x.shape, d_weight.shape) == (x.shape, weight.shape)
        assert {d_x.dtype, d_weight.dtype} == {torch.bfloat16}
        assert {d_x.device.type, d_weight.device.type} == {"cuda"}
