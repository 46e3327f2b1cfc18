"""Numbers in a reply."""

import re

NUMBER = re.compile(r"(?<![\w.])-?\$?\d[\d,]*(?:\.\d+)?")


def last_number(text: str) -> float | None:
    """The last number of a text, thousands' commas and dollar signs taken off; None where there is none."""
    found = NUMBER.findall(text)
    return float(found[-1].replace(",", "").replace("$", "")) if found else None
