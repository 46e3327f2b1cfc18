"""Tables for a person: drawn with rich on a terminal, aligned plain text elsewhere."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from nanochat.common.console import is_terminal


@dataclass(frozen=True)
class Table:
    """Rows of text under a title; the first column is of words, the others of numbers."""

    title: str
    """Above it."""
    rows: Sequence[tuple[str, ...]]
    """Cells."""
    header: tuple[str, ...] = ()
    """Names of the columns; empty for none."""
    last_is_words: bool = False
    """Whether the last column is of words too."""

    @property
    def columns(self) -> int:
        """How many."""
        return len(self.rows[0])

    def is_words(self, column: int) -> bool:
        """Whether a column is of words, which begin at its left."""
        return column == 0 or (self.last_is_words and column == self.columns - 1)


def show(tables: list[Table]) -> None:
    """Print tables one under the other."""
    if is_terminal():
        _show_rich(tables)
    else:
        print("\n\n".join(map(plain, tables)))


def plain(table: Table) -> str:
    """A table as aligned text."""
    lines = [table.header, *table.rows] if table.header else list(table.rows)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

    def aligned(line: tuple[str, ...]) -> str:
        cells = zip(line, widths, strict=True)
        return "  ".join(cell.ljust(width) if table.is_words(i) else cell.rjust(width) for i, (cell, width) in enumerate(cells)).rstrip()

    return "\n".join([table.title, *(f"  {aligned(line)}" for line in lines)])


def _show_rich(tables: list[Table]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table as Drawn

    console = Console()
    for table in tables:
        console.print(table.title, style="bold", highlight=False)
        drawn = Drawn(box=box.SIMPLE_HEAD, show_header=bool(table.header))
        for i in range(table.columns):
            drawn.add_column(table.header[i] if table.header else "", justify="left" if table.is_words(i) else "right")
        for row in table.rows:
            drawn.add_row(*row)
        console.print(drawn)


def count(number: float) -> str:
    """A large count for a person: 24.1 B."""
    exponent = max(0, min(4, int(math.log10(max(number, 1)) // 3)))
    return f"{number / 1000**exponent:.3g} {' kMBT'[exponent]}".strip()


def amount(number: float) -> str:
    """Hours, dollars or gigabytes for a person: 1,211, 28.7, 0.052."""
    if number >= 100:
        return f"{number:,.0f}"
    return f"{number:.1f}" if number >= 1 else f"{number:.2g}"
