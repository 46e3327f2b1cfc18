"""Samples as micro-batches of a rank, read ahead in a thread while the step computes."""

import itertools
import queue
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

READ_AHEAD = 4  # micro-batches
WIDTH_STEP = 64
SAMPLES_AT_ONCE = 64  # small micro-batches are read several at a time: finding places costs nearly as much for one as for many


class Rows(Protocol):
    """Training rows by their numbers, which count through all epochs; each is a pure function of its number."""

    def read(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows by their numbers (n,): ids and targets, each (n, T) int64; a target is −1 where nothing is learned."""

    def supervised(self, first: int, count: int) -> int:
        """Targets that are learned in `count` rows from number `first` on."""


@dataclass(frozen=True)
class Batch:
    """A micro-batch of a rank."""

    ids: Tensor
    """(B, T) int64."""
    targets: Tensor
    """(B, T) int64, −1 where nothing is learned."""
    divisor: float
    """What its summed loss is divided by: the targets of the whole step, over all ranks and micro-batches."""
    weights: Tensor | None = None
    """(B, T) float32: a factor on the loss of each target; None for 1."""


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


def row_width(lengths: Iterable[int], seq_len: int) -> int:
    """Columns of a micro-batch of padded rows: enough for the longest, a multiple of 64, `seq_len` at most."""
    return min(seq_len, -(-max(lengths) // WIDTH_STEP) * WIDTH_STEP)


def _to_device(array: NDArray[np.int64], device: torch.device) -> Tensor:
    rows = torch.from_numpy(np.ascontiguousarray(array))
    return rows.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else rows


def micro_batches(rows: Rows, split: Split, first_sample: int, device: torch.device) -> Iterator[Batch]:
    """Endless micro-batches on the device, from the step that begins with row `first_sample`.

    A thread reads ahead; closing the iterator ends it, and an error in it is raised here.
    """
    ready: queue.Queue[Batch | BaseException] = queue.Queue(maxsize=READ_AHEAD)
    closed = threading.Event()

    def put(item: Batch | BaseException) -> None:
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
                ids, targets = rows.read(np.concatenate(numbers))
                for micro_batch in range(first, first + together):
                    if micro_batch % split.grad_accum_steps == 0:
                        step = micro_batch // split.grad_accum_steps
                        divisor = max(1, rows.supervised(first_sample + step * split.samples_per_step, split.samples_per_step))
                    at = slice((micro_batch - first) * split.micro_batch_size, (micro_batch - first + 1) * split.micro_batch_size)
                    put(Batch(_to_device(ids[at], device), _to_device(targets[at], device), divisor))
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
