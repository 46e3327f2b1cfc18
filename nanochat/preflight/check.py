"""What a check finds."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

GREEN, YELLOW, RED = "green", "yellow", "red"
STATUSES = (GREEN, YELLOW, RED)  # from good to bad


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    """What."""
    status: str
    """green; yellow: the run can go on, with this known; red: it would fail, or waste what it costs."""
    value: str
    """What was seen."""
    advice: str = ""
    """What to do; empty where there is nothing to do."""
    rank: int = 0
    """The rank that it is about; of what a whole node shares its first."""

    def to_json(self) -> dict[str, Any]:
        """As a dictionary of its fields."""
        return asdict(self)


def worst(statuses: Iterable[str]) -> str:
    """The worst of them; green where there is none."""
    return max(statuses, key=STATUSES.index, default=GREEN)
