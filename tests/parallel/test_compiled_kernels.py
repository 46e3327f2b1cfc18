"""What a layer's element-wise kernels read and write on an H100, as Inductor makes them, is what the planner counts on."""

import shutil

import pytest
import torch

from nanochat.plan.step import ELEMENTWISE_WIDTHS, FP8_FIRST_WIDTHS
from tests.described_gpu import run

pytest.importorskip("triton", reason="triton comes with torch for GPUs, and here for Linux")
pytestmark = [
    pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler"),
    pytest.mark.skipif(torch.backends.cuda.is_built(), reason="this torch has its own guard for GPUs"),
]


@pytest.mark.parametrize(
    ("precision", "scales", "widths"),
    [
        ("bf16", "kept", ELEMENTWISE_WIDTHS["bf16"]),
        ("fp8", "kept", ELEMENTWISE_WIDTHS["fp8"]),
        pytest.param("fp8", "first", ELEMENTWISE_WIDTHS["fp8"] + FP8_FIRST_WIDTHS, marks=pytest.mark.slow),
    ],
)
def test_a_layer_reads_and_writes_what_the_planner_counts_on(precision: str, scales: str, widths: float) -> None:
    counted = run(f"--precision={precision}", f"--scales={scales}")
    assert counted["forward"] + counted["backward"] == pytest.approx(widths, rel=0.01)
