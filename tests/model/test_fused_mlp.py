"""The MLP with relu² inside its products: its kernel in Triton's interpreter and for real chips; the model with it, on a CPU."""

import os
import subprocess
import sys

import pytest
import torch

from nanochat.model.config import GPTConfig
from nanochat.model.fused_mlp import FusedMLP, use_fused_mlp
from nanochat.model.gpt import GPT
from nanochat.model.init import init_weights
from nanochat.parallel.compiling import compile_model, compiler_missing
from tests.conftest import ROOT

NO_COMPILER = pytest.mark.skipif(bool(compiler_missing(torch.device("cpu"))), reason="no compiler")


def random(seed: int, *shapes: tuple[int, int]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator) for shape in shapes]


def the_kernel_finishes_both_products() -> None:
    from nanochat.model import mlp_kernels as kernels

    for n, k, m in ((128, 64, 256), (200, 72, 320)):
        x, weight, g, back = random(1, (n, k), (m, k), (n, k), (k, m))
        y = kernels.product(x, weight, None)
        torch.testing.assert_close(y, (x @ weight.t()).relu().square(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(kernels.product(g, back, y), 2 * y.sqrt() * (g @ back), rtol=1e-4, atol=1e-3)


def test_the_kernel_finishes_both_products() -> None:
    pytest.importorskip("triton")
    program = "from tests.model.test_fused_mlp import the_kernel_finishes_both_products as f; f(); print('right')"
    environment = {**os.environ, "TRITON_INTERPRET": "1"}  # which Triton reads as it is imported
    finished = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert finished.stdout == "right\n", finished.stderr


@pytest.mark.parametrize("chip", [90, 100])
@pytest.mark.parametrize("gradient", [False, True])
def test_the_kernel_compiles_for_chips_with_the_copy_engine(chip: int, gradient: bool) -> None:
    pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from nanochat.model import mlp_kernels as kernels

    rows, columns, depth = kernels.ROWS, kernels.COLUMNS, kernels.DEPTH
    blocks = {"a_desc": (rows, depth), "b_desc": (depth, columns) if gradient else (columns, depth)}
    blocks |= {"y_desc": (rows, columns // 2), "to_desc": (rows, columns // 2)}
    constants = {"PROGRAMS": 132, "GRADIENT": gradient, "ROWS": rows, "COLUMNS": columns, "DEPTH": depth, "GROUP": kernels.GROUP}
    signature = {name: f"tensordesc<bf16[{high}, {wide}]>" for name, (high, wide) in blocks.items()}
    signature |= dict.fromkeys(("n", "m", "k"), "i32") | dict.fromkeys(constants, "constexpr")
    made = compile(ASTSource(kernels._product, signature, constants), target=GPUTarget("cuda", chip, 32), options=kernels.OPTIONS)
    assert ("wgmma" if chip == 90 else "tcgen05") in made.asm["ptx"]
    assert made.metadata.shared <= 227 * 1024


def test_gradients_are_those_of_the_plain_way() -> None:
    x, w1, w2, upstream = (each.double() for each in random(2, (48, 16), (64, 16), (16, 64), (48, 16)))
    leaves = [each.requires_grad_() for each in (x, w1, w2)]
    want = torch.autograd.grad((x @ w1.t()).relu().square() @ w2.t(), leaves, upstream)
    got = torch.autograd.grad(FusedMLP.apply(*leaves), leaves, upstream)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other)


@NO_COMPILER
def test_all_layers_share_one_graph() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = GPT(GPTConfig.from_depth(4, 64, 32))
    use_fused_mlp(model)
    compile_model(model)
    ids = torch.randint(0, 64, (2, 32))
    model(ids, ids).backward()
    assert torch._dynamo.utils.counters["frames"]["ok"] == 2  # a layer and the loss


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=NO_COMPILER)])
def test_a_model_with_it_is_the_same_model(compiled: bool) -> None:
    torch._dynamo.reset()
    ids, targets = torch.randint(0, 300, (2, 4, 64), generator=torch.Generator().manual_seed(2))
    losses, gradients = [], []
    for fused in (False, True):
        model = GPT(GPTConfig.from_depth(2, 300, 64))
        init_weights(model, 0, std_of=lambda _name, p: p.size(1) ** -0.5)
        if fused:
            use_fused_mlp(model)
            if compiled:
                compile_model(model)
        loss = model(ids, targets)
        loss.backward()
        with torch.no_grad():
            losses += [float(loss), float(model(ids, targets))]
        gradients.append([p.grad for p in model.parameters()])
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-5)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
