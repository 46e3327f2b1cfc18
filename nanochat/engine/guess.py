"""Guessing what follows from what stands there already (prompt lookup decoding)."""

from collections.abc import Sequence

LONGEST = 3  # tokens that must have occurred before, at most
BACK = 2048  # tokens looked back


def guess(ids: Sequence[int], count: int) -> list[int]:
    """The tokens, `count` at most, that followed the latest earlier occurrence of the last few ids; [] where there is none."""
    ids = ids[-BACK:]
    for size in range(min(LONGEST, len(ids) - 1), 0, -1):
        tail = list(ids[-size:])
        for start in range(len(ids) - size - 1, -1, -1):
            if ids[start] == tail[0] and list(ids[start : start + size]) == tail:
                return list(ids[start + size : start + size + count])
    return []
