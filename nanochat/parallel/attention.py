"""Which of torch's kernels computes attention."""

import contextlib
from collections.abc import Iterator

import torch
from torch.nn import attention as torch_attention
from torch.nn.attention import SDPBackend, sdpa_kernel

ANY_SHAPE = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)
BACKENDS = {  # of which torch takes what it can; cuDNN's only where it is named, for it is what may not work
    "fused": ANY_SHAPE,
    "products": ANY_SHAPE,
    "cudnn": (SDPBackend.CUDNN_ATTENTION,),
    "flash": (SDPBackend.FLASH_ATTENTION,),
    "fa3": (SDPBackend.FLASH_ATTENTION,),
    "fa4": (SDPBackend.FLASH_ATTENTION,),
    "efficient": (SDPBackend.EFFICIENT_ATTENTION,),
    "math": (SDPBackend.MATH,),
}
PACKAGES = {"fa3": "FA3", "fa4": "FA4"}  # as torch registers them


@contextlib.contextmanager
def attention_of_any_shape() -> Iterator[None]:
    """Within it attention runs on kernels that take one query, and lengths that change from pass to pass.

    cuDNN refuses the one and makes a new plan for each of the others; later FlashAttentions are not proven for either.
    """
    package = _active_package()
    _take_package(None)
    try:
        with sdpa_kernel(list(ANY_SHAPE)):
            yield
    finally:
        _take_package(package)


def take_attention(way: str) -> None:
    """From now on attention runs on this one of torch's kernels; `fused` and `products` leave torch the choice, without cuDNN's.

    The plain kernel stays allowed besides, for what the chosen one refuses. Raises what an installed package raises.
    """
    _take_package(PACKAGES.get(way))
    torch.compiler.config.cache_key_tag = f"attention={way}"  # compiled layers hold the kernel, and their cache does not know it
    for backend, enable in (
        (SDPBackend.CUDNN_ATTENTION, torch.backends.cuda.enable_cudnn_sdp),
        (SDPBackend.FLASH_ATTENTION, torch.backends.cuda.enable_flash_sdp),
        (SDPBackend.EFFICIENT_ATTENTION, torch.backends.cuda.enable_mem_efficient_sdp),
    ):
        enable(backend in BACKENDS[way])


@contextlib.contextmanager
def only_attention(way: str) -> Iterator[None]:
    """Within it no other of torch's kernels computes attention: what the chosen one refuses raises RuntimeError."""
    package = _active_package()
    _take_package(PACKAGES.get(way))
    try:
        with sdpa_kernel(list(BACKENDS[way])):
            yield
    finally:
        _take_package(package)


def installed_packages() -> list[str]:
    """Which of `fa3` and `fa4` can be taken on this machine."""
    found = []
    for way, package in PACKAGES.items():
        with contextlib.suppress(Exception):
            _take_package(package)
            found.append(way)
    _take_package(None)
    return found


def _active_package() -> str | None:
    return getattr(torch_attention, "current_flash_attention_impl", lambda: None)()


def _take_package(package: str | None) -> None:
    if package is not None:
        torch_attention.activate_flash_attention_impl(package)
    elif _active_package() is not None:
        torch_attention.restore_flash_attention_impl()
