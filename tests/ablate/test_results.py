"""What may be said of runs."""

import math
from pathlib import Path

import pytest

from nanochat.ablate.results import Result, append_result, compare, read_results, rows, tokens_at, verdict


def result(change: str, seed: int, bpb: float, depth: int = 4, seconds: float = 100.0, reached: float | None = None) -> Result:
    return Result(change, depth, seed, "tokens", {}, 10, 1000, seconds, bpb, [(1000, seconds, bpb)], reached)


def grid(*others: Result) -> list[Result]:
    return [result("baseline", seed, 2.0 + 0.01 * seed, depth) for depth in (4, 6) for seed in (1, 2, 3)] + list(others)


def test_a_curve_reaches_a_value_between_two_evaluations() -> None:
    curve = [(100, 1.0, 4.0), (200, 2.0, 3.0), (300, 3.0, 2.0)]
    assert tokens_at(curve, 2.5) == 250
    assert tokens_at(curve, 4.0) == 100
    assert tokens_at(curve, 1.9) is None


def test_differences_are_taken_seed_by_seed() -> None:
    better = [result("better", seed, 1.9 + 0.01 * seed, seconds=110, reached=800) for seed in (1, 2, 3)]
    comparison = next(each for each in compare(grid(*better)) if each.change == "better")
    assert comparison.differences == pytest.approx([-0.1] * 3)
    assert comparison.wins
    assert comparison.shares == pytest.approx([0.8] * 3)
    assert comparison.slower == pytest.approx(1.1)
    assert compare(better) == []  # nothing to hold them against


def test_what_seeds_differ_by_is_no_win() -> None:
    noisy = [result("noisy", seed, 2.0 + 0.01 * seed + difference) for seed, difference in ((1, -0.1), (2, 0.05), (3, -0.1))]
    comparison = next(each for each in compare(grid(*noisy)) if each.change == "noisy")
    # mean −0.05; standard deviation 0.0866 over √3, times Student's 2.92 for two degrees of freedom: 0.146
    assert comparison.mean == pytest.approx(-0.05)
    assert comparison.uncertainty == pytest.approx(0.146, abs=1e-3)
    assert not comparison.wins


def test_a_change_is_kept_only_where_it_wins_at_two_depths() -> None:
    one = [result("one", seed, 1.9 + 0.01 * seed) for seed in (1, 2, 3)]
    two = [result("two", seed, 1.9 + 0.01 * seed, depth) for depth in (4, 6) for seed in (1, 2, 3)]
    worse = [result("worse", seed, 2.1 + 0.01 * seed) for seed in (1, 2, 3)]
    alone = [result("alone", 1, 1.5)]
    comparisons = compare(grid(*one, *two, *worse, *alone))
    said = {change: verdict(comparisons, change) for change in ("one", "two", "worse", "alone")}
    assert said == {"one": "wins at 1 of 1 depths", "two": "keep", "worse": "worse", "alone": "one seed says nothing"}
    assert math.isinf(next(each for each in comparisons if each.change == "alone").uncertainty)
    made = rows(grid(*one, *two, *worse, *alone))
    assert [row[0] for row in made[:2]] == ["baseline"] * 2
    assert made[0][4] == "2.0200 ± 0.0100"
    assert [row[8] for row in made if row[0] == "two"] == ["keep", ""]
    assert "never" in made[-1]


def test_a_depth_with_one_seed_does_not_count_but_must_not_speak_against() -> None:
    two = [result("two", seed, 1.9 + 0.01 * seed, depth) for depth in (4, 6) for seed in (1, 2, 3)]
    for bpb, says in ((1.9, "keep"), (2.1, "one seed says nothing")):
        third = [result("baseline", 1, 2.0, 8), result("two", 1, bpb, 8)]
        assert verdict(compare(grid(*two, *third)), "two") == says


def test_a_line_of_a_killed_process_is_left_out_and_the_next_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    append_result(path, result("a", 1, 2.0))
    with path.open("a") as file:
        file.write('{"change": "b", "de')
    append_result(path, result("c", 1, 2.0, reached=5.0))
    assert [each.change for each in read_results(path)] == ["a", "c"]
