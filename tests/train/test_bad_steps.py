"""Steps with a loss or gradient that would ruin the model: skipped, gone back before, and in the end explained."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from nanochat.train.bad_steps import WINDOW, PassedSamples, verdict
from tests.conftest import TINY, World, wrong_request

STEP = 8  # samples of one: 512 tokens in rows of 64
FLAGS = (*TINY, "--num_iterations=12", "--save_every=4")

USUAL = [[3.0 + 0.01 * n, 1.0] for n in range(WINDOW)]


@pytest.mark.parametrize(
    ("loss", "norm", "recent", "words"),
    [
        (float("nan"), 1.0, [], "loss is nan"),
        (float("inf"), 1.0, USUAL, "loss is inf"),
        (3.0, float("nan"), [], "gradient is nan"),
        (3.0, float("inf"), USUAL, "gradient is inf"),
        (6.2, 1.0, USUAL, "loss is 6.200, lately 3.095"),
        (3.0, 51.0, USUAL, "gradient is 51, lately 1"),
        (6.0, 49.0, USUAL, ""),
        (30.0, 500.0, USUAL[1:], ""),  # too few to tell
        (0.1, 5.0, [[0.1, 0.0]] * WINDOW, ""),  # nothing was learned lately
    ],
)
def test_what_is_a_bad_step(loss: float, norm: float, recent: list[list[float]], words: str) -> None:
    found = verdict(loss, norm, recent)
    assert words in found
    assert bool(found) == bool(words)


def test_samples_that_are_passed() -> None:
    passed = PassedSamples(Path("x"), [(40, 56), (16, 24), (56, 60)])
    assert [passed.end_of(sample, 8) for sample in (0, 8, 9, 16, 23, 24, 33, 56, 60)] == [0, 8, 24, 24, 24, 24, 60, 60, 60]


def rows(world: World, tag: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (world.base / "runs" / tag / "base/metrics.jsonl").read_text().splitlines()]


def taken(world: World) -> list[int]:
    """The first samples of the steps that were read, once each, in order; what was read ahead among them."""
    return [int(line) for line in (world.base / "taken").read_text().split()]


@pytest.fixture
def copy(world: World, tmp_path: Path) -> World:
    other = World(tmp_path)
    for name in ("data", "tokenizer", "tokens"):
        shutil.copytree(world.base / name, tmp_path / name)
    return other


@pytest.mark.parametrize("nproc", [0, 2])
def test_a_bad_step_is_skipped_by_all_ranks_and_its_number_taken_with_the_next_batch(copy: World, nproc: int) -> None:
    finished = copy.run("tests.train.poisoned", str(5 * STEP), str(7 * STEP), *FLAGS, "--model_tag=skip", nproc=nproc)
    assert finished.returncode == 0, finished.stderr
    warnings = [line for line in finished.stderr.splitlines() if "is skipped" in line]
    assert len(warnings) == 2
    assert "step 6 is skipped and taken with the next batch: its loss is inf (samples 40 to 47)" in warnings[0]
    steps = [row for row in rows(copy, "skip") if "loss" in row]
    assert [row["step"] for row in steps] == list(range(1, 13))
    assert [row["bad_samples"] for row in rows(copy, "skip") if "bad_steps" in row] == [[40, 48], [48, 56]]
    assert steps[-1]["tokens"] == 14 * STEP * 64
    assert taken(copy)[:14] == [STEP * n for n in range(14)]


def test_after_several_in_a_row_the_run_goes_back_and_past_them_and_a_resumed_run_does_the_same(copy: World) -> None:
    bad = (str(6 * STEP), str(9 * STEP))
    finished = copy.run("tests.train.poisoned", *bad, *FLAGS, "--model_tag=back", "--max_bad_steps=3")
    assert finished.returncode == 0, finished.stderr
    assert "warning: 3 bad steps in a row after step 6 (samples 48 to 71): going back to the checkpoint of step 4, and on past them" in (
        finished.stderr
    )
    assert json.loads((copy.base / "runs/back/base/passed_samples.json").read_text()) == {"ranges": [[48, 72]], "rollbacks": 1}
    steps = [row["step"] for row in rows(copy, "back") if "loss" in row]
    assert steps == [*range(1, 7), *range(5, 13)]
    losses = copy.losses("back")
    # The same samples without any that are bad: what was gone back over was done again to the same end.
    again = copy.run("tests.train.poisoned", *bad, *FLAGS, "--model_tag=skip", "--max_bad_steps=9")
    assert again.returncode == 0
    assert copy.losses("skip") == losses
    # Resumed from before the bad samples, which the checkpoint does not know of.
    shutil.rmtree(copy.base / "runs/back/base/model")
    for step in (8, 12):
        shutil.rmtree(copy.base / f"runs/back/base/checkpoints/step_{step:08d}", ignore_errors=True)
    resumed = copy.run("tests.train.poisoned", *bad, *FLAGS, "--model_tag=back", "--max_bad_steps=3")
    assert resumed.returncode == 0, resumed.stderr
    assert "is skipped" not in resumed.stderr
    assert copy.losses("back") == losses


def test_the_third_time_it_stops_and_says_which_layer_which_batch_and_which_documents(copy: World) -> None:
    flags = (*FLAGS, "--model_tag=end", "--max_bad_steps=2")
    finished = copy.run("tests.train.poisoned", str(6 * STEP), str(10_000), *flags, nproc=2)
    stage = copy.base / "runs/end/base"
    assert finished.returncode == 1, finished.stderr  # torchrun's own, for a rank's 2
    errors = [line for line in finished.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, finished.stderr
    for words in (
        "2 bad steps in a row after step 6 (samples 80 to 95)",
        "going back has not helped 2 times",
        "layer lm_head",
        "--grad_clip",
    ):
        assert words in errors[0]
    found = json.loads((stage / "diagnosis.json").read_text())
    assert found["samples"] == [88, 96]
    assert list(found["layers"]) == ["embed_tokens", "layers.0", "layers.1", "lm_head"]
    assert found["layers"]["lm_head"] is None
    assert len(found["rows"]) == 5
    losses = [row["loss"] for row in found["rows"]]
    assert losses == sorted(losses, reverse=True)
    assert 2 < losses[-1] < losses[0] < 10  # of the text itself; it was the weights of the loss that were infinite
    shown = found["rows"][0]["documents"]
    assert shown[0][:40] in "\n".join(text for text in _texts(copy)) or shown[0].startswith("<|bos|>")
    assert json.loads((stage / "passed_samples.json").read_text())["rollbacks"] == 0
    healed = copy.run("scripts.base_train", *flags)
    assert healed.returncode == 0, healed.stderr
    assert "going on after step 4" in healed.stdout


def _texts(world: World) -> list[str]:
    import pyarrow.parquet as pq

    return [text for path in (world.base / "data").rglob("*.parquet") for text in pq.read_table(path)["text"].to_pylist()]


def test_a_damaged_list_of_passed_samples(copy: World) -> None:
    (copy.base / "runs/bad/base").mkdir(parents=True)
    (copy.base / "runs/bad/base/passed_samples.json").write_text("{")
    wrong_request(copy.run("scripts.base_train", *FLAGS, "--model_tag=bad"), "passed_samples.json is damaged")


@pytest.mark.parametrize("flag", ["--max_bad_steps=0", "--hang_timeout=0", "--keep_every=6", "--keep_every=0"])
def test_wrong_values(world: World, flag: str) -> None:
    wrong_request(world.run("scripts.base_train", *FLAGS, flag), flag.split("=")[0])
