"""Products in fp8: as float64 makes them of the rounded values, near the unrounded ones, compiled and on a described GPU too."""

import pytest
import torch
from torch._subclasses import FakeTensorMode

from nanochat.model.casts import GRADIENT, INPUT, in_eight_bits
from nanochat.model.config import GPTConfig
from nanochat.model.elementwise import rms_norm
from nanochat.model.fp8 import Fp8Products, largest_of, sampled, scale_of, scale_of_norms
from nanochat.model.fp8_layers import InEightBits, KeptForAStep, use_fp8
from nanochat.model.fp8_mlp import Fp8MLP, product_times_slope, relu_squared_of_product
from nanochat.model.gpt import GPT
from nanochat.model.init import init_weights
from nanochat.parallel.compiling import compile_model, compiler_missing

NO_COMPILER = pytest.mark.skipif(bool(compiler_missing(torch.device("cpu"))), reason="no compiler")


def quantized(x: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """x in an fp8 dtype, and the float32 scalar that it is to be multiplied by: x ≈ eight · scale. No value overflows."""
    scale = scale_of(largest_of(x), dtype)
    return in_eight_bits(x, scale, dtype), scale


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


def near(got: torch.Tensor | None, want: torch.Tensor, tolerance: float) -> None:
    assert got is not None
    assert float((got.double() - want).norm() / want.norm()) < tolerance


def random(dtype: torch.dtype, seed: int, *shapes: tuple[int, int]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def eight(x: torch.Tensor, dtype: torch.dtype, scale: float | None = None) -> torch.Tensor:
    """As the products see it, in float64."""
    scale = float(quantized(x, dtype)[1]) if scale is None else scale
    return in_eight_bits(x.detach(), scale, dtype).double() * scale


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_and_their_gradients_are_those_of_the_rounded_values(dtype: torch.dtype, fused: bool) -> None:
    x, *weights = random(dtype, 1, (96, 64), (48, 64), (32, 64))
    upstream = random(dtype, 2, (96, 48), (96, 32))
    ys = Fp8Products.apply(x, None, None, None, None, True, False, fused, *weights)
    torch.autograd.backward(ys, [g.detach() for g in upstream])
    x8, g8 = eight(x, INPUT), eight(torch.cat(upstream, dim=1), GRADIENT)
    w8 = eight(torch.cat(weights), INPUT)
    tolerance = 1e-5 if dtype == torch.float32 else 8e-3
    near(torch.cat(ys, dim=1), x8 @ w8.t(), tolerance)
    near(x.grad, g8 @ w8, tolerance)
    near(torch.cat([weight.grad for weight in weights if weight.grad is not None]), g8.t() @ x8, tolerance)
    assert {t.dtype for t in (*ys, x.grad, *(weight.grad for weight in weights)) if t is not None} == {dtype}
    exact = x.detach().double() @ weights[0].detach().double().t()
    near(ys[0], exact, 0.05)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_mlp_and_its_gradients_are_those_of_the_rounded_values(dtype: torch.dtype, fused: bool) -> None:
    x, w1, w2, upstream = random(dtype, 3, (96, 64), (256, 64), (64, 256), (96, 64))
    fixed = scale_of_norms(64)
    y = Fp8MLP.apply(x, None, None, None, None, None, fixed, True, False, fused, False, w1, w2)
    y.backward(upstream.detach())
    x8, w18, w28, g8 = eight(x, INPUT, fixed), eight(w1, INPUT), eight(w2, INPUT), eight(upstream, GRADIENT)
    a = (x8 @ w18.t()).to(dtype).double()  # the results of products are rounded to the compute dtype
    h8 = eight(a.relu().square().float(), INPUT)
    d_a = 2 * a.relu() * (g8 @ w28).to(dtype).double()
    d_a8 = eight(d_a.float(), GRADIENT)
    tolerance = 1e-3 if dtype == torch.float32 else 2e-2  # where a value is near the middle of two, sums in another order choose the other
    for got, want in ((y, h8 @ w28.t()), (x.grad, d_a8 @ w18), (w1.grad, d_a8.t() @ x8), (w2.grad, g8.t() @ h8)):
        near(got, want, tolerance)
        assert got is not None
        assert got.dtype == dtype


def test_no_norm_gives_more_than_its_known_scale_holds() -> None:
    for width in (64, 768, 2432, 3328):
        one_alone = torch.zeros(1, width)
        one_alone[0, 3] = 1e4
        largest = float(rms_norm(one_alone, 1e-6).abs().max()) / scale_of_norms(width)
        assert torch.finfo(INPUT).max / 2 <= largest <= torch.finfo(INPUT).max


def model_and_batch() -> tuple[GPT, torch.Tensor, torch.Tensor]:
    model = GPT(GPTConfig.from_depth(2, 300, 64))
    init_weights(model, 0, std_of=lambda _name, p: p.size(1) ** -0.5)
    ids, targets = torch.randint(0, 300, (2, 4, 64), generator=torch.Generator().manual_seed(2))
    return model, ids, targets


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=NO_COMPILER)])
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


def steps_of(keeps: dict[str, bool], compiled: bool = False, fp8: bool = True, **how: bool) -> list[list[torch.Tensor]]:
    """Losses and gradients of three micro-batches of two steps; the weights grow between these."""
    torch._dynamo.reset()
    model, ids, targets = model_and_batch()
    if fp8:
        use_fp8(model, **how)
    if compiled:
        compile_model(model)
    kept = KeptForAStep(model, compiled, **keeps) if keeps else None
    seen = []
    for _ in range(2):
        if kept:
            kept.renew()
        for shift in range(3):
            model.zero_grad()
            loss = model(ids.roll(shift, 1), targets.roll(shift, 1))
            loss.backward()
            seen.append([loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.5)
    return seen


def test_weights_kept_for_a_step_change_nothing_and_follow_the_weights() -> None:
    for made, kept in zip(steps_of({}), steps_of({"weights": True}), strict=True):
        for one, other in zip(made, kept, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_products_that_end_with_relu_squared_give_the_same(weights: bool, fused: bool) -> None:
    keeps = {"scales": True, "weights": weights}
    for one, other in zip(steps_of(keeps), steps_of(keeps, fused=fused, finishes=True), strict=True):
        for a, b in zip(one, other, strict=True):
            assert torch.equal(a, b)


def test_weights_scales_kept_for_a_step_are_theirs() -> None:
    for one, other in zip(steps_of({"scales": True}), steps_of({"scales": True, "weights": True}), strict=True):
        for a, b in zip(one, other, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=NO_COMPILER)])
def test_scales_kept_for_a_step_are_as_near_to_float32(compiled: bool) -> None:
    how = {"fused": compiled, "finishes": compiled}  # operators of our own, which the compiler must bear
    exact, made, kept = steps_of({}, fp8=False), steps_of({}), steps_of({"scales": True, "weights": True}, compiled, **how)
    for wanted, one, other in zip(exact, made, kept, strict=True):
        for want, a, b in zip(wanted, one, other, strict=True):
            error, with_kept = (float((each - want).norm() / want.norm()) for each in (a, b))
            assert with_kept < 1.3 * error + 0.002
        assert not torch.equal(one[1], other[1])  # there is room for larger values: digits fall elsewhere


def test_a_step_that_grows_is_cut_off_and_the_next_finds_its_own_scales() -> None:
    model, ids, targets = model_and_batch()
    use_fp8(model)
    kept = KeptForAStep(model, compiled=False, scales=True)
    products = [each for each in model.modules() if isinstance(each, InEightBits)]
    model(ids, targets).backward()
    assert all(each.first for each in products)
    model(ids, targets).backward()
    assert not any(each.first for each in products)
    before = [each.largest.detach().clone() for each in products if each.largest is not None]
    assert len(before) == len(products) == 6
    assert all(bool((each[1:] > 0).all()) for each in before)
    (1e4 * model(ids, targets)).backward()  # gradients beyond what the scales hold
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    kept.renew()
    assert all(each.first for each in products)
    (1e4 * model(ids, targets)).backward()
    model(ids, targets)
    for each, old in zip(products, before, strict=True):
        assert each.largest is not None
        of_gradients = slice(1, len(old) - len(each.of))  # between what is of the input and what is of the weights
        assert torch.allclose(each.largest[of_gradients], 1e4 * old[of_gradients], rtol=0.2)
        assert torch.equal(each.largest[-len(each.of) :], old[-len(each.of) :])


def test_a_first_micro_batch_without_a_gradient_leaves_the_scales_of_the_step_before() -> None:
    model, ids, targets = model_and_batch()
    use_fp8(model)
    kept = KeptForAStep(model, compiled=False, scales=True)
    gradients = []
    for factor in (0.0, 1.0, 0.0):  # of the first micro-batch: where no answer is better than another there is no gradient
        kept.renew()
        (factor * model(ids, targets)).backward()
        model.zero_grad()
        model(ids, targets).backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for first, one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one, first)  # there was no step before: the second micro-batch has found them
        assert bool(one.any())


@pytest.mark.parametrize("place", [40, 41, 42, 43])
def test_few_tokens_with_a_gradient_are_not_overlooked(place: int) -> None:
    model, ids, targets = model_and_batch()
    only = torch.full_like(targets, -1)
    only[0, place : place + 2] = targets[0, place : place + 2]  # as in a conversation
    model(ids, only).backward()
    exact = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    use_fp8(model)
    KeptForAStep(model, compiled=False, scales=True)
    model(ids, only).backward()
    for want, parameter in zip(exact, model.parameters(), strict=True):
        assert parameter.grad is not None
        assert float((parameter.grad - want).norm() / want.norm()) < 0.3


def test_a_quarter_of_the_gradients_has_every_row_and_every_column() -> None:
    for n, k in ((8, 16), (12, 8)):
        x = torch.arange(n * k).view(n, k)
        found = sampled(x).flatten()
        assert len(found.unique()) == n * k // 4
        assert len((found // k).unique()) == n
        assert len((found % k).unique()) == k
    assert sampled(torch.ones(6, 8)).numel() == 48


def test_what_is_kept_and_not_renewed_is_stale() -> None:
    model, ids, targets = model_and_batch()
    use_fp8(model)
    KeptForAStep(model, compiled=False, weights=True)
    before = float(model(ids, targets))
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            parameter.mul_(2)
    assert float(model(ids, targets)) == before


def test_only_the_layers_products_change_and_their_weights_keep_their_names() -> None:
    model, _, _ = model_and_batch()
    names, parameters = list(model.state_dict()), [id(p) for p in model.parameters()]
    use_fp8(model)
    KeptForAStep(model, compiled=False, weights=True, scales=True)
    assert list(model.state_dict()) == names
    assert [id(p) for p in model.parameters()] == parameters
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
        w1 = torch.empty(9728, 2432, device="cuda", dtype=torch.bfloat16)
        w2 = torch.empty(2432, 9728, device="cuda", dtype=torch.bfloat16)
        for function, head, weights in (
            (Fp8Products, (None, None, None, None, True, False, True), (w1, w1)),
            (Fp8MLP, (None, None, None, None, None, 0.125, True, False, True, False), (w1, w2)),
        ):
            context = Context()
            ys = function.forward(context, x, *head, *weights)
            ys = ys if isinstance(ys, tuple) else (ys,)
            made = function.backward(context, *(torch.empty_like(y) for y in ys))
            results = (*ys, made[0], *made[-2:])
            of_ys = [(4096, 9728)] * 2 if function is Fp8Products else [x.shape]
            assert [each.shape for each in results] == [*of_ys, x.shape, *(weight.shape for weight in weights)]
            assert {each.dtype for each in results} == {torch.bfloat16}
            assert {each.device.type for each in results} == {"cuda"}
        x8, w18, g8 = (each.to(dtype) for each, dtype in ((x, INPUT), (w1, INPUT), (x, GRADIENT)))
        scale = torch.empty((), device="cuda")
        a, h8 = relu_squared_of_product(x8, scale, w18, scale, scale, torch.bfloat16)
        rows, turned = product_times_slope(g8, scale, w18, scale, a, scale, False)
        assert [each.dtype for each in (a, h8, rows, turned)] == [torch.bfloat16, INPUT, GRADIENT, GRADIENT]
        assert [each.shape for each in (a, h8, rows, turned)] == [(4096, 9728)] * 3 + [(9728, 4096)]
        assert {each.device.type for each in (a, h8, rows, turned)} == {"cuda"}
