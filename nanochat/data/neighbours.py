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
RMS = 20.0  # of a row: as a norm follows the embedding this is but a smaller learning rate, in this stage and in those that follow
TOKENS = 1 << 28  # of the text that are read
TOKENS_AT_ONCE = 1 << 26  # of them that are counted together
PASSES = 2  # over the table, to find its components
SPARE = 16  # components that are sought beyond those wanted, for the others' sake


def _excerpt(shards: Sequence[NDArray[np.uint16]], tokens: int) -> list[NDArray[np.uint16]]:
    """The beginning of each shard, one after the other, about `tokens` together; in pieces, since each is counted in a large table."""
    share = min(1.0, tokens / sum(map(len, shards)))
    text = np.concatenate([shard[: round(share * len(shard))] for shard in shards])
    return [text[start : start + TOKENS_AT_ONCE] for start in range(0, len(text), TOKENS_AT_ONCE)]


def neighbour_table(
    shards: Sequence[NDArray[np.uint16]], vocab_size: int, device: torch.device, tokens: int = TOKENS
) -> tuple[Tensor, Tensor]:
    """For each token how much more often than by chance each neighbour stands at each distance from it, and the token's share of the text.

    shards: ids of the text. Returns a table (V, 2 · REACH · neighbours) in nats, a column times the root of its neighbour's frequency,
    zeros for a token that was not seen; and shares (V,). Both float64 on the device.
    """
    pieces = _excerpt(shards, tokens)
    seen = torch.zeros(vocab_size, dtype=torch.float64, device=device)
    for piece in pieces:
        seen += _on(device, piece).bincount(minlength=vocab_size)
    chosen = seen.argsort(descending=True, stable=True)[: min(NEIGHBOURS, int(seen.count_nonzero()))]
    count, usual = len(chosen), seen[chosen] / seen.sum()
    number_of = torch.full((vocab_size,), count, device=device)  # what is no neighbour is counted too, and left out at the end
    number_of[chosen] = torch.arange(count, device=device)
    table = torch.zeros(vocab_size, 2 * REACH, count, dtype=torch.float64, device=device)
    for piece in pieces:
        ids = _on(device, piece)
        numbers = number_of[ids]
        for distance in range(1, REACH + 1):
            before, after = slice(None, -distance), slice(distance, None)
            for place, (token, neighbour) in enumerate(((before, after), (after, before)), 2 * (distance - 1)):
                pairs = (ids[token] * (count + 1) + numbers[neighbour]).bincount(minlength=vocab_size * (count + 1))
                table[:, place] += pairs.view(vocab_size, count + 1)[:, :count]
    for place in range(2 * REACH):
        information = ((table[:, place] + DOUBT * usual) / ((seen[:, None] + DOUBT) * usual)).log_()
        information -= (information @ usual / usual.sum())[:, None]  # softmax does not see what all neighbours have in common
        table[:, place] = information * usual.sqrt()
    table[seen == 0] = 0
    return table.flatten(1), seen / seen.sum()


def _on(device: torch.device, ids: NDArray[np.uint16]) -> Tensor:
    return torch.from_numpy(ids.astype(np.int64)).to(device)


def embedding_of_text(
    shards: Sequence[NDArray[np.uint16]], vocab_size: int, width: int, device: torch.device, tokens: int = TOKENS
) -> Tensor:
    """Rows of an embedding, (V, width) float32 on the device, of mean square RMS²: zeros for tokens that the text does not have.

    shards: ids of the text, of which about `tokens` are read. What the directions of all rows have in common, in the mean over the
    text, lies along the first axis. The coordinates after it hold most of the rest, and where the text has fewer components than
    `width` the last are zero. In float64, so that it comes out the same however many threads add it up.
    """
    table, share = neighbour_table(shards, vocab_size, device, tokens)
    weight = share.sqrt()[:, None]
    components = _components(table.mul_(weight), width)
    there = share > 0
    rows = torch.zeros(vocab_size, width, dtype=torch.float64, device=device)
    rows[there, : components.size(1)] = (components / weight)[there]
    rows /= rows.square().mean(dim=1, keepdim=True).sqrt().clamp(min=1e-30)
    return (RMS * _turned(rows, share @ rows)).float()


def _turned(rows: Tensor, direction: Tensor) -> Tensor:
    """The rows (n, m), all turned alike: what lies along the direction (m,) comes to lie along the first axis."""
    mirror = direction / direction.norm().clamp(min=1e-30)
    mirror[0] -= 1  # Householder's: it swaps the two
    return rows - 2 / mirror.square().sum().clamp(min=1e-30) * (rows @ mirror)[:, None] * mirror


def _components(table: Tensor, count: int) -> Tensor:
    """The rows of a table (n, m) in their first `count` principal components, or as many as there are: U · S of its singular values.

    By iterating on a random subspace (Halko, Martinsson and Tropp, arXiv 0909.4061); of the components found the smallest are spare.
    """
    sought = min(count + SPARE, *table.shape)
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(table.size(1), sought, dtype=torch.float64, generator=generator).to(table.device)
    for _ in range(PASSES):
        basis = table.t() @ torch.linalg.qr(table @ basis)[0]
    basis = torch.linalg.qr(table @ basis)[0]
    within = basis.t() @ table
    squares, turned = torch.linalg.eigh(within @ within.t())
    return ((basis @ turned) * squares.clamp(min=0).sqrt()).flip(1)[:, :count]
