"""An embedding to begin with, from the text: tokens that keep the same company get similar rows.

Pointwise mutual information of each token with its neighbours (Church and Hanks, 1990), and its principal components, as in latent
semantic analysis. What it brings, and what other ways to count or scale bring, stands in ablations/README.md.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

REACH = 4  # neighbours that are looked at, before a token and after it, each distance for itself
NEIGHBOURS = 1024  # the most frequent tokens, whose presence is counted
DOUBT = 8.0  # imagined sightings of each token, beside neighbours as frequent as they are everywhere
RMS = 10.0  # of a row: as a norm follows the embedding this is but a smaller learning rate, in this stage and in those that follow
TOKENS = 1 << 28  # of the text that are read
PASSES = 2  # over the table, to find its components
SPARE = 16  # components that are sought beyond those wanted, for the others' sake


def _excerpt(shards: Sequence[NDArray[np.uint16]], tokens: int) -> list[NDArray[np.uint16]]:
    """The beginning of each shard, so much of it that all have about `tokens` together."""
    share = min(1.0, tokens / sum(map(len, shards)))
    return [shard[: round(share * len(shard))] for shard in shards]


def _pairs(shards: Sequence[NDArray[np.uint16]], number_of: NDArray[np.int64], count: int, distance: int, after: bool) -> NDArray[np.int64]:
    """How often each token has each of `count` neighbours at a distance: (V, count). number_of: (V,), `count` for a token that is none."""
    width, seen = count + 1, np.zeros(len(number_of) * (count + 1), dtype=np.int64)
    for shard in shards:
        first, second = shard[:-distance], shard[distance:]
        token, neighbour = (first, second) if after else (second, first)
        seen += np.bincount(token.astype(np.int64) * width + number_of[neighbour], minlength=len(seen))
    return seen.reshape(-1, width)[:, :count]


def neighbour_table(
    shards: Sequence[NDArray[np.uint16]], vocab_size: int, tokens: int = TOKENS
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """For each token how much more often than by chance each neighbour stands at each distance from it, and the token's share of the text.

    shards: ids of the text. Returns a table (V, 2 · REACH · neighbours) in nats, a column times the root of its neighbour's frequency,
    zeros for a token that was not seen; and shares (V,).
    """
    shards = _excerpt(shards, tokens)
    seen = np.zeros(vocab_size, dtype=np.int64)
    for shard in shards:
        seen += np.bincount(shard, minlength=vocab_size)
    chosen = np.argsort(-seen, kind="stable")[: min(NEIGHBOURS, np.count_nonzero(seen))]
    usual = seen[chosen] / seen.sum()
    number_of = np.full(vocab_size, len(chosen))
    number_of[chosen] = np.arange(len(chosen))
    table = np.empty((vocab_size, 2 * REACH, len(chosen)))
    for place, (distance, after) in enumerate((distance, after) for distance in range(1, REACH + 1) for after in (True, False)):
        pairs = _pairs(shards, number_of, len(chosen), distance, after)
        information = np.log((pairs + DOUBT * usual) / ((seen[:, None] + DOUBT) * usual))
        information -= (information @ usual / usual.sum())[:, None]  # softmax does not see what all neighbours have in common
        table[:, place] = information * np.sqrt(usual)
    table[seen == 0] = 0
    return table.reshape(vocab_size, -1), seen / seen.sum()


def embedding_of_text(
    shards: Sequence[NDArray[np.uint16]], vocab_size: int, width: int, device: torch.device, tokens: int = TOKENS
) -> Tensor:
    """Rows of an embedding, (V, width) float32 on the device, of mean square RMS²: zeros for tokens that the text does not have.

    shards: ids of the text, of which about `tokens` are read. The first of `width` coordinates hold most of the square, and where
    the text has fewer components than that the last are zero. In float64, so that it comes out the same however many threads add it up.
    """
    table, share = neighbour_table(shards, vocab_size, tokens)
    weight = torch.from_numpy(share).sqrt().to(device)[:, None]
    weighted = torch.from_numpy(table).to(device).mul_(weight)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        u, s, _ = torch.svd_lowrank(weighted, min(width + SPARE, *weighted.shape), PASSES)
    there = weight.squeeze(1) > 0
    rows = torch.zeros(vocab_size, width, dtype=torch.float64, device=device)
    rows[there, : s.numel()] = (u * s / weight)[there, :width]
    return (RMS * rows / rows.square().mean(dim=1, keepdim=True).sqrt().clamp(min=1e-30)).float()
