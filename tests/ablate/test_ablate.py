"""A grid from its file to its table, with real runs."""

import json
import signal
import subprocess
import time
from pathlib import Path

from nanochat.ablate.record import with_tables
from tests.conftest import ROOT, World, wrong_request

GRID = """
depths = [1]
seeds = 2
[baseline]
max_seq_len = 64
device_batch_size = 8
total_batch_size = 512
num_iterations = 8
eval_tokens = 1024
eval_every = 4
precision = "fp32"
compile = false
[changes.hotter]
matrix_lr = 0.05
"""
SLOWER = "[changes.slower]\ndevice_batch_size = 1\nmicro_batch_size = 1\n"


def results(world: World) -> dict[str, dict[str, object]]:
    lines = (world.base / "ablations/small/results.jsonl").read_text().splitlines()
    return {f"{row['change']}-s{row['seed']}-{row['equal']}": row for row in map(json.loads, lines)}


def test_a_grid_is_done_goes_on_after_a_kill_and_ends_in_a_table(world: World, tmp_path: Path) -> None:
    path = tmp_path / "small.toml"
    path.write_text(GRID)
    process = subprocess.Popen(
        world.arguments("scripts.ablate", str(path), "--jobs=1"), cwd=ROOT, env=world.environment(), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    said = ""
    while "1/2 baseline" not in said:
        line = process.stdout.readline()
        assert line, said
        said += line
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = results(world)
    assert list(before) == ["baseline-s1-tokens"]
    deadline = time.monotonic() + 60  # what it had started ends after it, and saves
    while subprocess.run(["pgrep", "-f", "model_tag=ablate-small"], capture_output=True).stdout and time.monotonic() < deadline:
        time.sleep(0.2)

    done = world.run("scripts.ablate", str(path))
    assert done.returncode == 0, done.stderr
    assert "4 runs, 3 of them to do" in done.stdout
    after = results(world)
    assert len(after) == 4
    assert after["baseline-s1-tokens"] == before["baseline-s1-tokens"]
    hotter = after["hotter-s2-tokens"]
    assert hotter["settings"]["matrix_lr"] == 0.05  # type: ignore[index]
    assert (hotter["steps"], hotter["tokens"]) == (8, 4096)
    assert [point[0] for point in hotter["curve"]] == [2048, 4096]  # type: ignore[attr-defined]
    assert hotter["curve"][-1][2] == hotter["val_bpb"]  # type: ignore[index]
    table = (world.base / "ablations/small/table.md").read_text()
    assert table.count("| hotter |") == 1
    assert (world.base / "ablations/small/d1.png").read_bytes().startswith(b"\x89PNG")
    assert not list((world.base / "runs").glob("ablate-*"))
    assert len((world.base / "ablations/small/hotter-d1-s2.jsonl").read_text().splitlines()) == 10

    path.write_text(GRID + SLOWER)
    timed = world.run("scripts.ablate", str(path), "--equal_time", "--jobs=1")
    assert timed.returncode == 0, timed.stderr
    rows = results(world)
    slower = rows["slower-s1-tokens"]
    if "slower-s1-time" in rows:  # it is, unless the machine was busy with something else
        assert rows["slower-s1-time"]["steps"] != slower["steps"]
    again = world.run("scripts.ablate", str(path), "--jobs=1", "--record")
    assert "6 runs, 0 of them to do" in again.stdout
    recorded = (tmp_path / "README.md").read_text()
    assert recorded.startswith("## small\n")
    assert "the baseline's tokens: 4,096" in recorded
    assert recorded.count("| hotter |") in (1, 2)  # and in equal time, where the machine was busy
    assert with_tables(recorded, tmp_path) == recorded
    assert all(json.loads(line)["made"]["torch"] for line in (tmp_path / "results/small.jsonl").read_text().splitlines())

    path.write_text(GRID.replace("0.05", "0.06"))
    wrong_request(world.run("scripts.ablate", str(path)), "hotter-d1-s1 is done already, with matrix_lr = 0.05 and not 0.06")


def test_a_baseline_that_does_not_finish_ends_it(world: World, tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text(GRID.replace('precision = "fp32"', 'core_metric_every = 4\nbundle = "/nowhere"'))
    wrong_request(world.run("scripts.ablate", str(path)), "the baseline has not finished", "baseline-d1-s1", "/nowhere")


def test_a_text_that_is_too_short(world: World, tmp_path: Path) -> None:
    path = tmp_path / "long.toml"
    path.write_text(GRID.replace("num_iterations = 8", "num_iterations = 8000"))
    wrong_request(world.run("scripts.ablate", str(path)), "epochs", "max_epochs = ")


def test_the_tables_that_are_kept_are_those_of_the_results() -> None:
    text = (ROOT / "ablations/README.md").read_text()
    assert with_tables(text, ROOT / "ablations") == text
    assert all(f"<!-- made: {path.stem} -->" in text for path in (ROOT / "ablations/results").glob("*.jsonl"))


def test_results_are_not_recorded_into_another_readme(world: World, tmp_path: Path) -> None:
    path = tmp_path / "small.toml"
    path.write_text(GRID)
    (tmp_path / "README.md").write_text("# Something else\n")
    wrong_request(world.run("scripts.ablate", str(path), "--record"), "about something else")
    assert (tmp_path / "README.md").read_text() == "# Something else\n"
