"""The plan of the house: who may import whom, and what stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = [
    "common",
    "plan",
    "sandbox",
    "tokenizer",
    "model",
    "data",
    "optim",
    "parallel",
    "engine",
    "evals",
    "train",
    "tune",
    "report",
    "serve",
    "preflight",
    "ablate",
]


def imported_rooms(path: Path) -> set[str]:
    """The parts of nanochat that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("nanochat.")} & set(FLOORS)


@pytest.mark.parametrize("room", [floor for floor in FLOORS if (ROOT / "nanochat" / floor).is_dir()])
def test_a_room_imports_only_from_floors_below(room: str) -> None:
    below = set(FLOORS[: FLOORS.index(room) + 1])
    for path in (ROOT / "nanochat" / room).rglob("*.py"):
        assert imported_rooms(path) <= below, path


def test_the_plan_imports_nothing_heavy() -> None:
    program = "import sys, nanochat.plan, nanochat.plan.sizes, nanochat.plan.batch, nanochat.plan.command\n"
    program += "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0
