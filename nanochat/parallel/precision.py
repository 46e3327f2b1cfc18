"""In which number format a model computes; its parameters stay float32 masters."""

import platform
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from nanochat.common.errors import UserError

Precision = Literal["auto", "fp32", "bf16", "fp8"]


def cpu_has_bf16() -> bool:
    """Whether the processor multiplies bf16 matrices in hardware; where it does not, float32 is faster."""
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return platform.machine() == "arm64"
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})


def resolve_precision(precision: Precision, device: torch.device) -> torch.dtype:
    """The compute dtype for a request: `auto` is bf16 where the hardware has it, else fp32.

    Raises UserError for what the device cannot do.
    """
    has_bf16 = torch.cuda.is_bf16_supported() if device.type == "cuda" else cpu_has_bf16()
    if precision == "fp8":
        raise UserError("--precision=fp8 is not available in this version; use bf16 or auto")
    if precision == "auto":
        return torch.bfloat16 if has_bf16 else torch.float32
    return torch.bfloat16 if precision == "bf16" else torch.float32


def apply_precision(model: nn.Module, embedding: nn.Module, dtype: torch.dtype) -> None:
    """Let the model compute in `dtype`: autocast around its forward pass, and a residual stream of that dtype.

    `embedding` is the module whose output starts the residual stream.
    """
    if dtype == torch.float32:
        return

    def cast_output(_module: nn.Module, _args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output.to(dtype)

    embedding.register_forward_hook(cast_output)
    device_type = next(model.parameters()).device.type
    model.forward = torch.autocast(device_type, dtype)(model.forward)
