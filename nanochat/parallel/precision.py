"""In which number format a model computes."""

import os
import platform
from pathlib import Path
from typing import Literal

import torch

from nanochat.common.errors import UserError
from nanochat.plan.hardware import FIRST_WITH_FP8

Precision = Literal["auto", "fp32", "bf16", "fp8"]


def cpu_has_bf16() -> bool:
    """Whether the processor multiplies bf16 matrices in hardware; where it does not, float32 is faster."""
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return platform.machine() == "arm64"
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})


def evaluation_dtype(device: torch.device) -> torch.dtype:
    """What finished models are evaluated in: bf16 on a GPU that has it, else float32, in which answers do not depend on the batch."""
    return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32


def newton_schulz_dtype(compute_dtype: torch.dtype) -> torch.dtype:
    """What Muon orthogonalises in: bf16 where the model computes in it, else float32."""
    return torch.bfloat16 if compute_dtype == torch.bfloat16 else torch.float32


def resolve_precision(precision: Precision, device: torch.device) -> torch.dtype:
    """The compute dtype for a request: `auto` is bf16 where the hardware has it, else fp32; what fp8 leaves alone is like auto."""
    has_bf16 = torch.cuda.is_bf16_supported() if device.type == "cuda" else cpu_has_bf16()
    if precision in ("auto", "fp8"):
        return torch.bfloat16 if has_bf16 else torch.float32
    return torch.bfloat16 if precision == "bf16" else torch.float32


def makes_fp8_products(precision: Precision, device: torch.device) -> bool:
    """Whether the products inside layers are to be made in fp8. Raises UserError where the device has no fp8.

    A CPU can make them, slowly, for the sake of comparing losses: NANOCHAT_FP8_ON_CPU=1 lets it.
    """
    if precision != "fp8":
        return False
    if device.type == "cuda" and not torch.version.hip:
        if torch.cuda.get_device_capability(device) >= FIRST_WITH_FP8:
            return True
        raise UserError(
            f"--precision=fp8: {torch.cuda.get_device_name(device)} has no fp8 products, which came with Ada and Hopper: use bf16 or auto"
        )
    if device.type == "cpu" and os.environ.get("NANOCHAT_FP8_ON_CPU") == "1":
        return True
    where = "ROCm's fp8 is another format than the one used here" if torch.version.hip else "there is no GPU here"
    raise UserError(f"--precision=fp8: {where}: use bf16 or auto")
