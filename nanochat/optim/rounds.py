"""Which rank orthogonalises which matrix, and when: no matrix twice, and the work even."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

from nanochat.optim.newton_schulz import newton_schulz_flops

MAX_BATCH_ELEMENTS = 2**27  # bounds the working space of a batch: 256 MiB a copy in bf16

Matrix = tuple[int, int]  # rows, columns


@dataclass(frozen=True)
class Round:
    """Matrices of one shape that are orthogonalised at the same time, a batch on each rank."""

    shape: Matrix
    """Rows and columns."""
    owned: tuple[tuple[int, ...], ...]
    """For each rank the numbers of the matrices that it orthogonalises."""


@cache
def deal(shapes: tuple[Matrix, ...], owners: int, max_batch_elements: int = MAX_BATCH_ELEMENTS) -> tuple[Round, ...]:
    """Deal matrices of these shapes, numbered in this order, to `owners` ranks.

    The costliest shapes come first, and each matrix goes to the rank that has least to do until then and whose batch of this
    round is not full: what is left over where a shape does not divide by the ranks is evened out by the shapes after it.
    """
    numbers: dict[Matrix, list[int]] = defaultdict(list)
    for number, shape in enumerate(shapes):
        numbers[shape].append(number)
    work = [0] * owners
    rounds = []
    for shape in sorted(numbers, key=lambda shape: (-newton_schulz_flops(*shape), shape)):
        full = max(1, max_batch_elements // (shape[0] * shape[1]))
        for start in range(0, len(numbers[shape]), owners * full):
            owned: list[list[int]] = [[] for _ in range(owners)]
            for number in numbers[shape][start : start + owners * full]:
                owner = min((o for o in range(owners) if len(owned[o]) < full), key=work.__getitem__)
                owned[owner].append(number)
                work[owner] += newton_schulz_flops(*shape)
            rounds.append(Round(shape, tuple(map(tuple, owned))))
    return tuple(rounds)


def interleave(rounds: Iterable[Iterator[None]]) -> None:
    """Carry rounds out so that they overlap: as each begins, every one under way goes on by a stage, the newest first."""
    under_way: list[Iterator[None]] = []
    for beginning in rounds:
        under_way = _advance([beginning, *under_way])
    while under_way:
        under_way = _advance(under_way)


def _advance(rounds: list[Iterator[None]]) -> list[Iterator[None]]:
    """Take each round through its next stage; returns those that go on."""
    finished = object()
    return [each for each in rounds if next(each, finished) is not finished]
