"""The kernel of the MLP's products in eight bits without a GPU: what it computes by Triton's interpreter, and that it compiles.

The interpreter rounds to eight bits in a way of its own, so the values here need no rounding: a GPU's is proven on the GPU.
"""

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from nanochat.model.casts import GRADIENT, INPUT
from nanochat.model.fp8_mlp import product_times_slope, relu_squared_of_product
from tests.conftest import ROOT

pytest.importorskip("triton", reason="triton comes with torch for GPUs, and here for Linux")


def powers_of_two(generator: torch.Generator, dtype: torch.dtype, *shape: int) -> Tensor:
    """Of both signs, from 1/2 to 2."""
    exponents, signs = torch.randint(0, 3, (2, *shape), generator=generator).float()
    return ((exponents - 1).exp2() * (1 - 2 * (signs % 2))).to(dtype)


def one_a_row(generator: torch.Generator, dtype: torch.dtype, n: int, k: int) -> Tensor:
    """A power of two at one place of each row, so that a product with it has a single term."""
    places = torch.randint(0, k, (n, 1), generator=generator)
    values = powers_of_two(generator, torch.float32, n, 1)
    return torch.zeros(n, k).scatter(1, places, values).to(dtype)


def the_kernel_ends_both_products() -> None:
    from nanochat.model.fp8_mlp_kernels import product

    generator = torch.Generator().manual_seed(1)
    scales = [torch.tensor(value) for value in (0.5, 2.0, 0.25)]
    for n, k, m in ((128, 128, 256), (208, 144, 320)):
        for fast in (True, False):
            x, weight = one_a_row(generator, INPUT, n, k), powers_of_two(generator, INPUT, m, k)
            want = relu_squared_of_product(x, scales[0], weight, scales[1], scales[2], torch.bfloat16)
            a, eight = torch.zeros(n, m, dtype=torch.bfloat16), torch.zeros(n, m, dtype=INPUT)
            product(x, scales[0], weight, scales[1], scales[2], a, eight, None, fast)
            assert torch.equal(a, want[0])
            assert torch.equal(eight.float(), want[1].float())
            assert 0.2 < float((eight.float() > 0).float().mean()) < 0.8

            g = one_a_row(generator, GRADIENT, n, k)
            wanted = product_times_slope(g, scales[0], weight, scales[1], a, scales[2], fast)
            got = torch.zeros(n, m, dtype=GRADIENT), torch.zeros(m, n, dtype=GRADIENT)
            product(g, scales[0], weight, scales[1], scales[2], a, *got, fast)
            for one, other in zip(got, wanted, strict=True):
                assert torch.equal(one.float(), other.float())
                assert bool((one.float() != 0).any())


def test_the_kernel_ends_both_products() -> None:
    program = "from tests.model.test_fp8_mlp_kernels import the_kernel_ends_both_products as f; f(); print('right')"
    environment = {**os.environ, "TRITON_INTERPRET": "1"}  # which Triton reads as it is imported
    finished = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert finished.stdout == "right\n", finished.stderr


@pytest.mark.parametrize("chip", [90, 100])
@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("gradient", [False, True])
def test_the_kernel_compiles_for_chips_with_the_copy_engine(chip: int, gradient: bool, fast: bool) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from nanochat.model import fp8_mlp_kernels as kernels

    constants = kernels.constants(gradient, fast, GRADIENT if gradient else INPUT) | {"PROGRAMS": 132}
    rows, columns, depth = kernels.ROWS, kernels.COLUMNS[fast], kernels.DEPTH
    eight = "fp8e5" if gradient else "fp8e4nv"
    blocks = {"l_desc": (eight, rows, depth), "r_desc": ("fp8e4nv", columns, depth), "a_desc": ("bf16", rows, columns // 2)}
    blocks |= {"eight_desc": (eight, rows, columns // 2)}
    blocks |= {"turned_desc": (eight, columns // 2, rows) if gradient else (eight, rows, columns // 2)}
    signature = {name: f"tensordesc<{dtype}[{high}, {wide}]>" for name, (dtype, high, wide) in blocks.items()}
    signature |= dict.fromkeys(("l_scale_ptr", "r_scale_ptr", "scale_ptr"), "*fp32") | dict.fromkeys(("n", "m", "k"), "i32")
    signature |= dict.fromkeys(constants, "constexpr")
    made = compile(ASTSource(kernels._product, signature, constants), target=GPUTarget("cuda", chip, 32), options=kernels.OPTIONS[fast])
    assert ("wgmma" if chip == 90 else "tcgen05") in made.asm["ptx"]
    assert made.metadata.shared <= 227 * 1024
