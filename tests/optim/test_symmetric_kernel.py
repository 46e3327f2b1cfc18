"""The kernel of symmetric products, in Triton's interpreter and for real chips."""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from nanochat.optim import newton_schulz
from nanochat.optim.newton_schulz import orthogonalize
from tests.conftest import ROOT


def the_kernel_is_right() -> None:
    from nanochat.optim.symmetric_kernel import symmetric

    for count, rows, cols in ((2, 200, 320), (1, 128, 64)):
        x = torch.randn(count, rows, cols, generator=torch.Generator().manual_seed(rows))
        gram = symmetric(x, x, None, 1.0, 1.0)
        torch.testing.assert_close(gram, x @ x.mT, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(symmetric(gram, gram, gram, 0.5, 2.0), 2 * gram @ gram + 0.5 * gram, rtol=1e-4, atol=1)


def orthogonal_matrices_are_those_of_float64() -> None:
    newton_schulz.by_kernel = lambda _: True  # type: ignore[assignment]
    for shape in ((2, 128, 128), (1, 128, 256), (2, 256, 128)):
        matrices = torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        for way in ("halves", "gram"):
            got, want = orthogonalize(matrices, torch.float32, way), orthogonalize(matrices, torch.float64)
            torch.testing.assert_close(got.double(), want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("check", [the_kernel_is_right, orthogonal_matrices_are_those_of_float64])
def test_in_the_interpreter(check: Callable[[], None]) -> None:
    pytest.importorskip("triton")
    program = f"from tests.optim.test_symmetric_kernel import {check.__name__} as check; check(); print('right')"
    environment = {**os.environ, "TRITON_INTERPRET": "1"}  # which Triton reads as it is imported
    finished = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert finished.stdout == "right\n", finished.stderr


@pytest.mark.parametrize("chip", [90, 100])
def test_the_kernel_compiles_for_chips_with_the_copy_engine(chip: int) -> None:
    pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from nanochat.optim import symmetric_kernel as kernel

    constants = {"PLUS": True, "SIDE": kernel.SIDE, "DEPTH": kernel.DEPTH}
    operand, square = f"tensordesc<bf16[1, {kernel.SIDE}, {kernel.DEPTH}]>", f"tensordesc<bf16[1, {kernel.SIDE}, {kernel.SIDE}]>"
    signature = {"a_desc": operand, "b_desc": operand, "plus_desc": square, "to_desc": square}
    signature |= {"k": "i32", "tiles": "i32", "alpha": "fp32", "beta": "fp32"} | dict.fromkeys(constants, "constexpr")
    made = compile(ASTSource(kernel._symmetric, signature, constants), target=GPUTarget("cuda", chip, 32), options=kernel.OPTIONS)
    assert ("wgmma" if chip == 90 else "tcgen05") in made.asm["ptx"]
    assert made.metadata.shared <= 227 * 1024
