"""Conversations packed into rows of one length, whole: none is cut, and what does not fit is counted."""

import bisect
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

OPEN_ROWS = 128  # kept open for what comes; more pack little better


@dataclass(frozen=True)
class Packing:
    """Which conversations stand in which row, in their order."""

    members: NDArray[np.int64]
    """(conversations that fit,): their positions, row after row."""
    ends: NDArray[np.int64]
    """(rows,): where each row's members end."""
    too_long: NDArray[np.int64]
    """(conversations that do not fit,): their positions."""

    def __len__(self) -> int:
        return len(self.ends)

    def row(self, number: int) -> NDArray[np.int64]:
        """The positions of a row's conversations."""
        return self.members[int(self.ends[number - 1]) if number else 0 : int(self.ends[number])]


def pack(lengths: NDArray[np.int64], room: int) -> Packing:
    """Best fit in the order that is given: each conversation goes into the open row that it fills best.

    lengths: (conversations,) in tokens; room: tokens of a row. A row that is full closes, and when too many are open the fullest does.
    """
    rows: list[list[int]] = []  # in the order in which they are closed
    spaces: list[int] = []  # of the open rows, ascending
    open_rows: list[list[int]] = []  # in the order of `spaces`
    too_long = []
    for position, length in enumerate(lengths.tolist()):
        if length > room:
            too_long.append(position)
            continue
        at = bisect.bisect_left(spaces, length)
        if at < len(spaces):
            left, row = spaces.pop(at) - length, open_rows.pop(at)
        else:
            left, row = room - length, []
        row.append(position)
        if left == 0:
            rows.append(row)
            continue
        at = bisect.bisect_left(spaces, left)
        spaces.insert(at, left)
        open_rows.insert(at, row)
        if len(spaces) > OPEN_ROWS:
            spaces.pop(0)
            rows.append(open_rows.pop(0))
    rows.extend(open_rows)
    members = np.array([position for row in rows for position in row], dtype=np.int64)
    return Packing(members, np.cumsum([len(row) for row in rows], dtype=np.int64), np.array(too_long, dtype=np.int64))
