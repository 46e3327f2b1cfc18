"""Markdown that stays what it is whatever a model wrote."""

import html
import re
from collections.abc import Callable, Sequence

MADE = re.compile(r"<!-- made: (\S+) -->\n.*?<!-- end -->\n", re.DOTALL)


def cell(value: object) -> str:
    """A value inside a table: one line, no borders, no markup."""
    text = html.escape(str(value), quote=False).replace("\r", "").replace("\n", " ")
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", text)


def table(header: Sequence[str], rows: Sequence[Sequence[object]], words: int = 1) -> str:
    """A table whose first columns, so many, are words and whose others are numbers."""
    lines = ["| " + " | ".join(map(cell, header)) + " |", "|" + "---|" * words + "---:|" * (len(header) - words)]
    return "\n".join([*lines, *("| " + " | ".join(map(cell, row)) + " |" for row in rows)])


def block(text: str) -> str:
    """Text as it is, in a fence that is longer than any in it."""
    clean = "".join(char if char in "\n\t" or char.isprintable() else "�" for char in text)
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", clean)), default=0))
    return f"{fence}text\n{clean}\n{fence}"


def number(value: float | None, form: str = ",.4f", missing: str = "–") -> str:
    """A number in a form, or a dash."""
    return missing if value is None else format(value, form)


def duration(seconds: float | None) -> str:
    """Hours, minutes or seconds, as people read them."""
    if seconds is None:
        return "–"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def mark(name: str) -> str:
    """What stands around a part of a document that a program makes."""
    return f"<!-- made: {name} -->\n<!-- end -->\n"


def with_parts(text: str, part: Callable[[str], str]) -> str:
    """A document's text with the parts that a program makes: what stands between `<!-- made: NAME -->` and `<!-- end -->`, by name."""
    return MADE.sub(lambda found: f"<!-- made: {found[1]} -->\n{part(found[1])}\n<!-- end -->\n", text)
