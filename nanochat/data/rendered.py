"""Conversations as tokens in one piece of memory, or kept on disk for the next start."""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from nanochat.common.console import Progress
from nanochat.common.files import atomic_path
from nanochat.common.paths import base_dir
from nanochat.tokenizer.conversation import Conversation, Rendered, Renderer

CHUNK = 1024
THREADS = 8
FORMAT = "1"  # to be changed with what a rendered conversation is


class Conversations(Protocol):
    """Conversations by their numbers."""

    def __len__(self) -> int:
        """How many there are."""

    def __getitem__(self, number: int) -> Conversation:
        """Conversation `number`, from 0."""


@dataclass(frozen=True)
class RenderedSet:
    """Conversations as tokens, one after the other."""

    ids: NDArray[np.uint16]
    """(tokens,)"""
    mask: NDArray[np.bool_]
    """(tokens,): whether the model is to learn to say it."""
    ends: NDArray[np.int64]
    """(conversations,): where each ends."""

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(conversations,): tokens of each."""
        return np.diff(self.ends, prepend=0)

    def span(self, number: int) -> slice:
        """Where conversation `number` stands in `ids` and `mask`."""
        return slice(int(self.ends[number - 1]) if number else 0, int(self.ends[number]))

    def supervised(self) -> NDArray[np.int64]:
        """(conversations,): tokens of each that the model is to learn to say."""
        counts: NDArray[np.int64] = np.add.reduceat(self.mask, self.ends - self.lengths, dtype=np.int64)
        return counts

    @classmethod
    def of(cls, rendered: Sequence[Rendered]) -> "RenderedSet":
        """Of conversations that were rendered one by one."""
        ids = np.fromiter(
            chain.from_iterable(each.ids for each in rendered), dtype=np.uint16, count=sum(len(each.ids) for each in rendered)
        )
        mask = np.fromiter(chain.from_iterable(each.mask for each in rendered), dtype=np.bool_, count=len(ids))
        return cls(ids, mask, np.cumsum([len(each.ids) for each in rendered], dtype=np.int64))

    @classmethod
    def joined(cls, sets: Sequence["RenderedSet"]) -> "RenderedSet":
        """Of several sets, one after the other."""
        starts = np.cumsum([0, *(len(each.ids) for each in sets)])
        ends = [each.ends + start for each, start in zip(sets, starts[:-1], strict=True)]
        return cls(np.concatenate([s.ids for s in sets]), np.concatenate([s.mask for s in sets]), np.concatenate(ends))


def render(renderer: Renderer, conversations: Conversations, first: int, count: int, shown_as: str = "") -> RenderedSet:
    """Conversations `first` to `first + count` as tokens; with a name to show, its progress is."""

    def chunks() -> Iterator[RenderedSet]:
        with ThreadPoolExecutor(THREADS) as pool:
            for start in range(first, first + count, CHUNK):
                numbers = range(start, min(start + CHUNK, first + count))
                yield RenderedSet.of(list(pool.map(lambda number: renderer(conversations[number]), numbers)))

    if not shown_as:
        return RenderedSet.joined(list(chunks()))
    sets = []
    with Progress(f"tokenizing {shown_as}", count, "conversations") as progress:
        for each in chunks():
            sets.append(each)
            progress.advance(len(each))
    return RenderedSet.joined(sets)


def kept_place(renderer: Renderer, name: str, fingerprint: str) -> Path:
    """Where the tokens of a set of conversations lie: the name, the text and the tokenizer say so."""
    digest = hashlib.sha256(f"{FORMAT}/{fingerprint}/{renderer.tokenizer.hash}".encode()).hexdigest()[:12]
    return base_dir() / "conversations" / f"{name}-{digest}"


def keep(renderer: Renderer, conversations: Conversations, name: str, fingerprint: str) -> Path:
    """Make the tokens of all conversations and write them to disk, unless they are there; returns where."""
    place = kept_place(renderer, name, fingerprint)
    if not place.exists():
        made = render(renderer, conversations, 0, len(conversations), shown_as=name)
        with atomic_path(place) as aside:
            aside.mkdir()
            for key in ("ids", "mask", "ends"):
                np.save(aside / f"{key}.npy", getattr(made, key))
    return place


def open_kept(place: Path) -> RenderedSet:
    """The tokens that `keep` wrote, read as they are needed."""
    ids, mask, ends = (np.load(place / f"{key}.npy", mmap_mode="r") for key in ("ids", "mask", "ends"))
    return RenderedSet(ids, mask, np.asarray(ends))
