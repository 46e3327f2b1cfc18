"""Proofs pass for what is right, and for nothing else."""

from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor

from nanochat.model import fp8_mlp, loss
from nanochat.model.attention import attention_by_products
from nanochat.model.fp8 import Fp8Products
from nanochat.model.fp8_mlp import Fp8MLP
from nanochat.model.gpt import Block
from nanochat.optim import newton_schulz
from nanochat.parallel import proofs
from nanochat.parallel.proofs import Size, names, prove

CPU = torch.device("cpu")
SMALL = Size(CPU, 2, 64, 300)


@pytest.fixture(autouse=True)
def _eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compiled is tried once, in the test of all; elsewhere it takes seconds and shows nothing more."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)


@pytest.mark.parametrize("precision", ["bf16", "fp32", "fp8"])
def test_everything_that_a_cpu_may_compute_with_is_right(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    found = [prove(name, precision, SMALL) for name in names(precision, CPU, [], can_compile=precision != "fp32")]
    assert found
    assert all(proof.passed for proof in found), found
    for proof in found:
        assert proof.error is not None
        assert 0 < proof.error < proof.tolerance


def forgets_the_mask(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q @ k.mT * q.size(-1) ** -0.5, dim=-1) @ v


def forgets_one_gradient(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attention_by_products(q, k.detach() + 0 * k, v)


def makes_no_numbers(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attention_by_products(q, k, v) * float("nan")


def fails(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    raise RuntimeError("no kernel image is available\nfor execution on the device")


@pytest.mark.parametrize("broken", [forgets_the_mask, forgets_one_gradient, makes_no_numbers, fails])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_wrong_attention_is_struck_out(broken: Any, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proofs, "attention_by_products", broken)
    proof = prove("attention=products", precision, SMALL)
    assert not proof.passed
    assert proof.note == ("RuntimeError: no kernel image is available for execution on the device" if broken is fails else "")


def test_a_layer_that_computes_something_else_is_struck_out(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Block.forward

    def wrong(self: Block, x: Tensor, *args: Any) -> Tensor:
        y = right(self, x, *args)
        return y if x.dtype == torch.float64 else y * 1.05

    monkeypatch.setattr(Block, "forward", wrong)
    assert not prove("compile=off", "bf16", SMALL).passed


def test_a_wrong_loss_gradient_is_struck_out(monkeypatch: pytest.MonkeyPatch) -> None:
    right = loss.chunk_loss

    def wrong(logits: Tensor, targets: Tensor, cap: float) -> tuple[Tensor, Tensor]:
        losses, gradient = right(logits, targets, cap)
        return losses, gradient * (1.05 if logits.dtype != torch.float64 else 1)

    monkeypatch.setattr(loss, "chunk_loss", wrong)
    assert not prove("head=plain", "fp32", SMALL).passed


def test_a_wrong_orthogonalization_is_struck_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from nanochat.optim import newton_schulz

    monkeypatch.setattr(newton_schulz, "RENEWED_AFTER", ())  # what bf16 does not bear
    assert not prove("muon=gram", "bf16", Size(CPU, 6, 64, 300)).passed


@pytest.mark.parametrize("function", [Fp8Products, Fp8MLP])
def test_wrong_gradients_in_fp8_are_struck_out(function: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    right = function.backward

    def wrong(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        *others, d_weight = right(ctx, *upstream)
        return *others, 1.1 * d_weight

    monkeypatch.setattr(function, "backward", staticmethod(wrong))
    proof = prove("fp8_sums=short", "fp8", SMALL)
    assert not proof.passed
    assert proof.error == pytest.approx(0.1, rel=0.1)


def test_a_wrong_symmetric_product_is_struck_out_though_later_iterations_mend_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    right, calls = newton_schulz.symmetric_product, count()

    def wrong(a: Tensor, b: Tensor, *more: Any) -> Tensor:
        return right(a, b, *more) * 1.15

    def wrong_at_first(a: Tensor, b: Tensor, *more: Any) -> Tensor:
        return (right if next(calls) % (2 * newton_schulz.STEPS) else wrong)(a, b, *more)

    monkeypatch.setattr(newton_schulz, "symmetric_product", wrong_at_first)
    assert prove("muon=halves", "bf16", SMALL).passed
    monkeypatch.setattr(proofs, "symmetric_product", wrong)
    assert not prove("muon=halves", "bf16", SMALL).passed


WRONG_WHERE = {  # which arguments a kernel is wrong with, that the layers' own recipe may bring together
    "relu_squared_of_product": lambda operands: True,
    "product_times_slope": lambda operands: operands[-1],  # in short sums
    "relu_squared_turned": lambda operands: operands[-1],  # by the kernel that casts
}


@pytest.mark.parametrize("kernel", WRONG_WHERE)
def test_products_in_fp8_that_end_with_relu_squared_are_proven_with_all_that_they_meet(
    kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert prove("fp8_mlp=fused", "fp8", SMALL).passed
    right = getattr(fp8_mlp, kernel)

    def wrong(*operands: Any, **named: Any) -> Any:
        found = right(*operands, **named)
        if not WRONG_WHERE[kernel](operands):
            return found
        return tuple(torch.zeros_like(each) for each in found) if isinstance(found, tuple) else torch.zeros_like(found)

    monkeypatch.setattr(fp8_mlp, kernel, wrong)
    assert not prove("fp8_mlp=fused", "fp8", SMALL).passed
    assert prove("fp8_scales=kept", "fp8", SMALL).passed
