"""Bits per byte: the loss on held-out text in a unit that no tokenizer can change."""

import math

import numpy as np
import torch

from nanochat.data.samples import Samples
from nanochat.model.gpt import GPT
from nanochat.model.loss import NO_TARGET
from nanochat.parallel.ranks import Ranks


@torch.no_grad()
def bits_per_byte(model: GPT, samples: Samples, num_samples: int, token_bytes: np.ndarray, micro_batch_size: int, ranks: Ranks) -> float:
    """Bits that the model needs for a byte of the first `num_samples` samples, over all ranks.

    token_bytes: (V,) bytes of each id; targets of 0 bytes (special tokens) count neither as bits nor as bytes.
    """
    bytes_of = torch.from_numpy(token_bytes).to(ranks.device)
    sums = torch.zeros(2, dtype=torch.float64, device=ranks.device)  # nats, bytes
    stride = micro_batch_size * ranks.world_size
    for first in range(0, num_samples, stride):  # the same number of passes on every rank
        numbers = np.arange(first, first + micro_batch_size) + ranks.rank * micro_batch_size
        rows = torch.from_numpy(samples[np.minimum(numbers, num_samples - 1)]).to(ranks.device)
        ids, targets = rows[:, :-1], rows[:, 1:]
        wanted = (bytes_of[targets] > 0) & torch.from_numpy(numbers < num_samples).to(ranks.device)[:, None]
        losses = model(ids, torch.where(wanted, targets, NO_TARGET), per_token=True)
        sums[0] += losses.sum(dtype=torch.float64)
        sums[1] += (bytes_of[targets] * wanted).sum()
    nats, total_bytes = ranks.sum_(sums).tolist()
    return nats / (math.log(2) * total_bytes)


def xz_bits_per_byte(text: bytes) -> float:
    """Bits that `xz -9e` needs for a byte of the text: what a model must beat to have learned anything."""
    import lzma

    return 8 * len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)) / len(text)
