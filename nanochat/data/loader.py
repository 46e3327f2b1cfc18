"""Samples as micro-batches of a rank, read ahead in a thread while the step computes."""

import itertools
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nanochat.data.samples import Samples

READ_AHEAD = 4  # micro-batches
SAMPLES_AT_ONCE = 64  # small micro-batches are read several at a time: finding places costs nearly as much for one as for many


@dataclass(frozen=True)
class Split:
    """How the samples of a step are spread over ranks and micro-batches; it changes neither the samples nor their order."""

    rank: int
    """Number of this rank."""
    world_size: int
    """Ranks."""
    micro_batch_size: int
    """Sequences in one forward pass."""
    grad_accum_steps: int
    """Micro-batches of a rank in a step."""

    @property
    def samples_per_step(self) -> int:
        """Sequences in a step, over all ranks."""
        return self.world_size * self.micro_batch_size * self.grad_accum_steps

    def numbers(self, first_sample: int, micro_batch: int) -> np.ndarray:
        """Numbers of this rank's samples in its micro-batch number `micro_batch`, counted from the step of `first_sample` on."""
        step, micro_step = divmod(micro_batch, self.grad_accum_steps)
        first = first_sample + step * self.samples_per_step + (micro_step * self.world_size + self.rank) * self.micro_batch_size
        return np.arange(first, first + self.micro_batch_size)


def _to_device(rows: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    if device.type == "cuda":
        rows = rows.pin_memory().to(device, non_blocking=True)
    return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


def micro_batches(samples: Samples, split: Split, first_sample: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless micro-batches (ids, targets), each (B, T) int64 on the device, from the step that begins with `first_sample`.

    A thread reads ahead; closing the iterator ends it, and an error in it is raised here.
    """
    ready: queue.Queue[tuple[Tensor, Tensor] | BaseException] = queue.Queue(maxsize=READ_AHEAD)
    closed = threading.Event()

    def put(item: tuple[Tensor, Tensor] | BaseException) -> None:
        while not closed.is_set():
            try:
                ready.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def read() -> None:
        together = -(-SAMPLES_AT_ONCE // split.micro_batch_size)
        try:
            if device.type == "cuda":
                torch.cuda.set_device(device)
            for first in itertools.count(step=together):
                numbers = [split.numbers(first_sample, micro_batch) for micro_batch in range(first, first + together)]
                for rows in torch.from_numpy(samples[np.concatenate(numbers)]).split(split.micro_batch_size):
                    put(_to_device(rows, device))
                if closed.is_set():
                    return
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=read, name="loader", daemon=True)
    thread.start()
    try:
        while True:
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        closed.set()
        thread.join()
