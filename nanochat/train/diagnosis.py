"""Why a run cannot go on: the step that goes wrong, taken again and looked at: which layer, which rows, which documents."""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from nanochat.data.loader import Batch, Split
from nanochat.model.gpt import GPT
from nanochat.parallel.ranks import Ranks
from nanochat.parallel.sharding import reshard, set_is_last_backward
from nanochat.tokenizer.tokenizer import Tokenizer

WORST_ROWS = 5
TEXT_CHARS = 300


def diagnose(model: GPT, batches: Iterator[Batch], split: Split, tokenizer: Tokenizer, ranks: Ranks) -> dict[str, Any]:
    """What a step's gradients and losses are, by layer and by row. Every rank calls it; gradients are left at None.

    `layers`: the norm of each layer's gradient, the embedding first; `worst_layer`: the one with the largest, or the first in the order
    of the backward pass whose gradient is not finite; `rows`: those with the largest loss (mean over their tokens, in nats), with the
    beginning of each document in them. None stands for what is not finite.
    """
    rows: list[tuple[float, list[int]]] = []
    model.zero_grad(set_to_none=True)
    for micro_step in range(split.grad_accum_steps):
        batch = next(batches)
        set_is_last_backward(model, micro_step == split.grad_accum_steps - 1)
        with torch.no_grad():
            losses = model(batch.ids, batch.targets, per_token=True)  # (B, T)
        counts = (batch.targets >= 0).sum(1).clamp(min=1)
        rows += zip((losses.sum(1) / counts).tolist(), batch.ids.tolist(), strict=True)
        reshard(model)
        (model(batch.ids, batch.targets, weights=batch.weights) / batch.divisor * split.world_size).backward()
    layers = _norms(model, ranks)
    model.zero_grad(set_to_none=True)
    every = [row for of_rank in ranks.gather(_worst(rows)) for row in of_rank]
    return {
        "layers": {name: _finite(norm) for name, norm in layers.items()},
        "worst_layer": _worst_layer(layers),
        "rows": [{"loss": _finite(loss), "documents": _documents(ids, tokenizer)} for loss, ids in _worst(every)],
    }


def _worst(rows: list[tuple[float, list[int]]]) -> list[tuple[float, list[int]]]:
    return sorted(rows, key=lambda row: row[0] if math.isfinite(row[0]) else math.inf, reverse=True)[:WORST_ROWS]


def _norms(model: GPT, ranks: Ranks) -> dict[str, float]:
    """Norm of each layer's gradient over all ranks, by name, in the order of the forward pass."""
    names: list[str] = []
    squares: list[Tensor] = []
    for name, parameter in model.named_parameters():
        layer = name.removeprefix("model.").rsplit(".", 1)[0]
        layer = ".".join(layer.split(".")[:2]) if layer.startswith("layers.") else layer
        gradient = parameter.grad
        if gradient is None:
            continue
        local = gradient.to_local() if isinstance(gradient, DTensor) else gradient
        square = local.double().square().sum()
        if names and names[-1] == layer:
            squares[-1] = squares[-1] + square
        else:
            names.append(layer)
            squares.append(square)
    total = ranks.sum_(torch.stack(squares)) / (ranks.world_size // ranks.node_ranks)  # each node holds all shards
    return dict(zip(names, total.sqrt().tolist(), strict=True))


def _worst_layer(layers: dict[str, float]) -> str:
    broken = [name for name, norm in layers.items() if not math.isfinite(norm)]
    return broken[-1] if broken else max(layers, key=lambda name: layers[name])


def _documents(ids: list[int], tokenizer: Tokenizer) -> list[str]:
    """The beginnings of the documents in a row."""
    starts = [0, *(place for place, token in enumerate(ids) if token == tokenizer.bos_id and place > 0), len(ids)]
    return [tokenizer.decode(ids[first:end])[:TEXT_CHARS] for first, end in pairwise(starts)]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
