"""The kernel of symmetric products, in Triton's interpreter and for real chips."""

import os
import subprocess
import sys

import pytest
import torch

from tests.conftest import ROOT


def the_kernel_is_right() -> None:
    from nanochat.optim.symmetric_kernel import symmetric

    for count, rows, cols in ((2, 200, 320), (1, 128, 64)):
        x = torch.randn(count, rows, cols, generator=torch.Generator().manual_seed(rows))
        gram = symmetric(x, x, None, 1.0, 1.0)
        torch.testing.assert_close(gram, x @ x.mT, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(symmetric(gram, gram, gram, 0.5, 2.0), 2 * gram @ gram + 0.5 * gram, rtol=1e-4, atol=1)


def test_the_kernel_is_right() -> None:
    pytest.importorskip("triton")
    program = "from tests.optim.test_symmetric_kernel import the_kernel_is_right as f; f(); print('right')"
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
