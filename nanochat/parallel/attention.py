"""Which kernel computes attention on a GPU."""

from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from nanochat.common.console import warn

FASTEST_FROM = (9, 0)  # on Hopper cuDNN's forward and backward reach 399 TFLOP/s where FlashAttention-2 reaches 236


def attention_of_any_shape() -> AbstractContextManager[None]:
    """Within it attention runs on kernels that take one query, and lengths that change from pass to pass.

    cuDNN refuses the one and makes a new plan for each of the others.
    """
    context: AbstractContextManager[None] = sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])
    return context


def prefer_cudnn_attention(device: torch.device, dtype: torch.dtype, seq_len: int, head_dim: int) -> bool:
    """Let attention run on cuDNN where that is faster and proves itself on this machine; returns whether it does."""
    if device.type != "cuda" or dtype == torch.float32 or torch.version.hip or torch.cuda.get_device_capability(device) < FASTEST_FROM:
        return False
    q = torch.randn(1, seq_len, 2, head_dim, device=device, dtype=dtype, requires_grad=True)  # laid out as the model does

    def result_and_gradient(backend: SDPBackend) -> tuple[torch.Tensor, torch.Tensor]:
        with sdpa_kernel(backend):
            heads = q.transpose(1, 2)
            y = F.scaled_dot_product_attention(heads, heads, heads, is_causal=True)
        return y.detach(), torch.autograd.grad(y.square().sum(), q)[0]

    wanted = result_and_gradient(SDPBackend.MATH)
    try:
        got = result_and_gradient(SDPBackend.CUDNN_ATTENTION)
        works = all(torch.allclose(a, b, atol=0.05, rtol=0.05) for a, b in zip(got, wanted, strict=True))
    except RuntimeError:
        works = False
    torch.backends.cuda.enable_cudnn_sdp(works)
    torch.backends.cuda.enable_flash_sdp(not works)
    torch.backends.cuda.enable_mem_efficient_sdp(not works)
    if not works:
        warn("cuDNN's attention does not work here; FlashAttention-2 takes its place, more slowly")
    return works
