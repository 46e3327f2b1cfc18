"""The loss on held-out conversations."""

import numpy as np
import torch

from nanochat.data.loader import Rows
from nanochat.model.gpt import GPT
from nanochat.parallel.ranks import Ranks


@torch.no_grad()
def held_out_loss(model: GPT, rows: Rows, num_rows: int, micro_batch_size: int, ranks: Ranks) -> float:
    """Mean cross-entropy in nats of the targets in the first `num_rows` rows, over all ranks."""
    sums = torch.zeros(2, dtype=torch.float64, device=ranks.device)  # nats, targets
    stride = micro_batch_size * ranks.world_size
    for first in range(0, num_rows, stride):  # the same number of passes on every rank
        numbers = np.arange(first, first + micro_batch_size) + ranks.rank * micro_batch_size
        ids, targets = rows.read(np.minimum(numbers, num_rows - 1))
        targets = np.where((numbers < num_rows)[:, None], targets, -1)
        losses = model(torch.from_numpy(ids.copy()).to(ranks.device), torch.from_numpy(targets).to(ranks.device), per_token=True)
        sums[0] += losses.sum(dtype=torch.float64)
        sums[1] += int((targets >= 0).sum())
    nats, count = ranks.sum_(sums).tolist()
    return nats / max(count, 1)
