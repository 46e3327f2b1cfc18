"""When the allocator fails all the same: one rank tries again, several stop together."""

import gc
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import torch
from torch.distributed.fsdp import FSDPModule

from nanochat.model.gpt import GPT

LOOK_EVERY_S = 0.5
EXIT_AGAIN = 1
# As the CPU's allocator, CUDA, cuBLAS and NCCL say it when torch's own allocator is not asked.
SIGNS = (
    "DefaultCPUAllocator: can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "Cuda failure 2 'out of memory'",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that an allocation failed, on the GPU or on the CPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(sign in str(error) for sign in SIGNS)


def can_recover(model: GPT) -> bool:
    """Whether a step that broke off leaves the model in a state that can be put right (torch 2.13 and newer)."""
    return hasattr(model, "reset_iter_state")


def recover(model: GPT) -> None:
    """Forget a step that broke off: whole weights, gradients and what was on its way are given up."""
    assert isinstance(model, FSDPModule)
    model.reset_iter_state()
    model.zero_grad(set_to_none=True)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class Alarm:
    """A file that one rank writes to stop all of them: each looks for it beside its work, even while it waits in a collective.

    It stays behind when they have stopped; where it holds a message, their launcher is to start them again.
    """

    def __init__(self, path: Path):
        self._path = path
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="alarm", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._over.wait(LOOK_EVERY_S):
            if self._path.exists():
                os._exit(EXIT_AGAIN)

    def stop_all(self, last_words: Callable[[], tuple[str, bool]]) -> NoReturn:
        """Stop every rank, this one at once. The first rank to come here speaks for all.

        last_words: makes the message to the person, and says whether the launcher is to start again.
        """
        self._over.set()
        try:
            descriptor = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            os._exit(EXIT_AGAIN)
        message, again = last_words()
        print(f"error: {message}", file=sys.stderr, flush=True)
        if again:
            os.write(descriptor, f"{message}\n".encode())
        os.close(descriptor)
        os._exit(EXIT_AGAIN)

    def close(self) -> None:
        """Stop looking."""
        self._over.set()
        self._thread.join()
