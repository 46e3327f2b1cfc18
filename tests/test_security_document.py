"""SECURITY.md claims nothing without naming the test that shows it, and names no test that is not there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXT)))
DEFENDED = TEXT[TEXT.index("## What is defended") : TEXT.index("## What is not")]


@pytest.mark.parametrize(("file", "test"), NAMED)
def test_every_test_that_is_named_is_there(file: str, test: str) -> None:
    functions = [node.name for node in ast.parse((ROOT / file).read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)]
    assert test in functions


def test_every_claim_names_one() -> None:
    claims = re.findall(r"^- .*$", DEFENDED, re.MULTILINE)
    assert len(claims) > 12
    assert [claim for claim in claims if not re.search(r"`tests/[\w/]+\.py::\w+`", claim)] == []


def test_every_flag_of_it_is_the_projects() -> None:
    code = "".join(path.read_text(encoding="utf-8") for room in ("nanochat", "scripts") for path in (ROOT / room).rglob("*.py"))
    flags = re.findall(r"`--(\w+)`", TEXT)
    assert len(flags) > 2
    assert [flag for flag in flags if flag not in code] == []
