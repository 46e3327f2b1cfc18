"""The computing part of a training step, the same for the trainer and for what measures it."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from nanochat.data.loader import Batch, Split
from nanochat.model.gpt import GPT
from nanochat.parallel.sharding import set_is_last_backward


def accumulate_gradients(
    model: GPT, batches: Iterator[Batch], split: Split, after: Callable[[str], object] = lambda phase: None
) -> tuple[Tensor, int]:
    """Forward and backward passes of all micro-batches of a step; gradients stay with the parameters.

    after: called with "forward" and "backward" when each of these is done. Returns this rank's share of the step's mean loss
    (their sum over the ranks is the mean, in nats; a float32 scalar) and the tokens of the step over all ranks, with as many on
    each as on this one.
    """
    if model.kept_for_a_step:
        model.kept_for_a_step.renew()
    loss, tokens = torch.zeros((), device=model.lm_head.weight.device), 0
    for micro_step in range(split.grad_accum_steps):
        batch = next(batches)
        tokens += split.world_size * batch.ids.numel()
        set_is_last_backward(model, micro_step == split.grad_accum_steps - 1)
        micro_loss = model(batch.ids, batch.targets, weights=batch.weights) / batch.divisor
        after("forward")
        (micro_loss * split.world_size).backward()  # sharding takes the mean over the ranks, the loss is divided by all targets already
        after("backward")
        loss += micro_loss.detach()
    return loss, tokens
