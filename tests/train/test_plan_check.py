"""What the trainer says after fifty steps about its plan."""

import pytest

from nanochat.train.plan_check import PlanCheck


def spoken(capsys: pytest.CaptureFixture[str], step_s: float, gib: float) -> tuple[str, str]:
    check = PlanCheck(2.0, 60.0, lambda: gib, "measured")
    for _ in range(5):
        check.step(30.0)  # compiling
    for _ in range(44):
        check.step(step_s)
    assert capsys.readouterr().out == ""
    for _ in range(60):
        check.step(step_s)
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_a_run_that_keeps_to_its_plan_says_so_once(capsys: pytest.CaptureFixture[str]) -> None:
    out, err = spoken(capsys, 2.1, 61.0)
    assert out == "after 50 steps: 2.10 s a step, planned 2.00 (measured); 61.0 GiB allocated at the peak, planned 60.0\n"
    assert err == ""


@pytest.mark.parametrize(("step_s", "gib", "word"), [(2.5, 60.0, "power limit"), (2.0, 70.0, "memory is 1.17 times")])
def test_where_they_part_it_names_the_usual_causes(capsys: pytest.CaptureFixture[str], step_s: float, gib: float, word: str) -> None:
    out, err = spoken(capsys, step_s, gib)
    assert out.count("after 50 steps") == 1
    assert err.count("\n") == 1
    assert word in err
