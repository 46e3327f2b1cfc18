"""The Triton kernels without a GPU: what they compute by Triton's interpreter, and that they compile for chips with fp8.

The interpreter rounds to eight bits in a way of its own (31.6 becomes 16), so the values here need no rounding: a GPU's rounding is
proven on the GPU, by scripts.tune.
"""

import importlib.util
import os
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from nanochat.model.casts import GRADIENT, INPUT, in_eight_bits, relu_squared_gradient

pytest.importorskip("triton", reason="triton comes with torch for GPUs, and here for Linux")

SHAPES = [(128, 128), (200, 300), (16, 272), (1, 130)]


def loaded(interprets: bool, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module of kernels, of its own: whether kernels are interpreted is settled as they are defined."""
    from nanochat.model import casts

    monkeypatch.setenv("TRITON_INTERPRET", "1" if interprets else "0")
    path = os.path.join(os.path.dirname(casts.__file__), "fp8_kernels.py")
    spec = importlib.util.spec_from_file_location(f"kernels_{interprets}", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def powers_of_two(seed: int, *shape: int) -> Tensor:
    """Of both signs, from 1/8 to 8, in bf16."""
    exponents, signs = torch.randint(0, 7, (2, *shape), generator=torch.Generator().manual_seed(seed)).float()
    return ((exponents - 3).exp2() * (1 - 2 * (signs % 2))).bfloat16()


@pytest.mark.parametrize("dtype", [INPUT, GRADIENT])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_matrix_is_cast_and_turned(shape: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels, (n, k) = loaded(True, monkeypatch), shape
    x, scale = powers_of_two(0, n, k + 8)[:, :k], torch.tensor(0.25)  # a row is not right after the other
    x[0, 0] = 1e6  # is cut off
    side_by_side, above_each_other = torch.zeros(n, k + 5, dtype=dtype), torch.zeros(k + 3, n, dtype=dtype)
    kernels.cast(x, scale, side_by_side[:, 5:], above_each_other[3:])
    assert torch.equal(side_by_side[:, 5:].float(), in_eight_bits(x, scale, dtype).float())
    assert float(side_by_side[0, 5]) == torch.finfo(dtype).max
    assert torch.equal(above_each_other[3:].float(), side_by_side[:, 5:].t().float())
    assert not side_by_side[:, :5].float().any()  # nothing beside is written
    assert not above_each_other[:3].float().any()
    in_columns = torch.zeros(k, n, dtype=dtype)
    kernels.cast(x.t().contiguous().t(), scale, None, in_columns)
    assert torch.equal(in_columns.float(), above_each_other[3:].float())
    alone = torch.zeros(k, n, dtype=dtype)
    kernels.cast(side_by_side[:, 5:], None, None, alone)
    assert torch.equal(alone.float(), above_each_other[3:].float())


@pytest.mark.parametrize("shape", SHAPES)
def test_relu_squareds_gradient_is_that_of_the_plain_way(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    kernels, (n, k) = loaded(True, monkeypatch), shape
    d_h, a = powers_of_two(1, n, k), powers_of_two(2, n, k)
    d_scale, h_scale = torch.tensor(0.125), torch.tensor(0.5)
    got = [torch.empty(*size, dtype=dtype) for size, dtype in (((n, k), GRADIENT), ((k, n), GRADIENT), ((k, n), INPUT))]
    kernels.relu_squared_gradient(d_h, a, d_scale, h_scale, *got)
    for one, other in zip(got, relu_squared_gradient(d_h, a, d_scale, h_scale, fused=False), strict=True):
        assert torch.equal(one.float(), other.float())
        assert bool((one.float() != 0).any())
    alone = torch.zeros(k, n, dtype=INPUT)
    kernels.cast(a, h_scale, None, alone, squares=True)
    assert torch.equal(alone.float(), got[2].float())


def test_what_is_not_a_number_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = loaded(True, monkeypatch)
    x = torch.ones(16, 16, dtype=torch.bfloat16)
    x[3, 5] = float("nan")
    one = torch.tensor(1.0)
    rows, turned, h_turned = (torch.empty(16, 16, dtype=dtype) for dtype in (GRADIENT, GRADIENT, INPUT))
    kernels.cast(x, one, rows, turned)
    assert bool(rows[3, 5].isnan())
    assert int(rows.float().isnan().sum()) == 1
    kernels.relu_squared_gradient(torch.ones_like(x), x, one, one, rows, turned, h_turned)
    assert bool(rows[3, 5].isnan())
    assert bool(turned[5, 3].isnan())
    assert int(rows.float().isnan().sum()) == 1


@pytest.mark.parametrize("chip", [89, 90, 100])
def test_kernels_compile_for_chips_with_fp8(chip: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    kernels = loaded(False, monkeypatch)
    sizes = dict.fromkeys(("n", "k", "x_stride", "rows_stride", "turned_stride"), "i32")
    bf16, fp32, e4m3, e5m2 = "*bf16", "*fp32", "*fp8e4nv", "*fp8e5"
    casts: list[tuple[Any, dict[str, str], dict[str, Any]]] = [
        (
            kernels._cast,
            {"x_ptr": before, "scale_ptr": fp32, "rows_ptr": eight, "turned_ptr": eight, **sizes},
            {"LARGEST": 448.0, "CASTS": before == bf16, "SQUARES": squares, "ROWS": rows, "BLOCK": kernels.BLOCK},
        )
        for before, eight, rows, squares in (
            (bf16, e5m2, True, False),
            (bf16, e4m3, False, False),
            (bf16, e4m3, False, True),
            (e4m3, e4m3, False, False),
        )
    ]
    pointers = {"d_h_ptr": bf16, "a_ptr": bf16, "d_scale_ptr": fp32, "h_scale_ptr": fp32, "rows_ptr": e5m2}
    gradient = (
        kernels._relu_squared_gradient,
        {**pointers, "h_turned_ptr": e4m3, "n": "i32", "k": "i32"},
        {"D_LARGEST": 57344.0, "H_LARGEST": 448.0, "BLOCK": kernels.BLOCK},
    )
    for kernel, signature, constants in [*casts, gradient]:
        source = ASTSource(kernel, {**signature, **dict.fromkeys(constants, "constexpr")}, constants)
        made = compile(source, target=GPUTarget("cuda", chip, 32), options={"num_warps": kernels.WARPS})
        assert len(made.asm["cubin"]) > 0
