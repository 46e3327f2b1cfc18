"""The chain from text to a word of the model, where a machine is not set up as one would wish."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT, TINY, Finished, World

KEPT = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHON", "NANOCHAT", "XDG"))}
ASCII_ONLY = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii:strict"}
READ_ONLY = 'mount --bind "$ROOT" "$ROOT" && mount -o remount,bind,ro "$ROOT" && ! touch "$ROOT/x" 2>/dev/null && cd "$ROOT" && exec "$@"'

Run = Callable[..., Finished]


def runner(base: Path, wrap: list[str], cwd: Path, **surroundings: str) -> Run:
    """What runs a script in some surroundings; it must end well."""

    def run(module: str, *args: str) -> Finished:
        environment = {**KEPT, "NANOCHAT_BASE_DIR": str(base), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **surroundings}
        command = [*wrap, sys.executable, "-m", module, *args]
        finished = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, timeout=200)
        said, errors = (stream.decode("utf-8", "backslashreplace") for stream in (finished.stdout, finished.stderr))
        assert finished.returncode == 0, said + errors
        assert "Traceback" not in errors, errors
        return Finished(command, finished.returncode, said, errors)

    return run


def write_text(directory: Path) -> Path:
    directory.mkdir(parents=True)
    for number in range(30):
        words = " ".join(f"Größe {number * word} → 語{word}" for word in range(80))
        (directory / f"Stück {number}.txt").write_text(words, encoding="utf-8")
    return directory


def chain(run: Run, text: Path, base: Path) -> None:
    """From text to a word."""
    run("scripts.dataset", "--data", f"path:{text}")
    run("scripts.tok_train", "--data", f"path:{text}", "--vocab_size", "300")
    run("scripts.tok_eval")
    run("scripts.tok_encode")
    run("scripts.base_train", *TINY, "--num_iterations=2", "--model_tag=odd", "--sample_every=2", "--eval_every=2", "--eval_tokens=512")
    run("scripts.report", "--model_tag=odd")
    assert "\n" in run("scripts.chat_cli", "-i", "base", "-p", "Größe → 語", "--max_tokens=3", "--no-compile").stdout
    assert (base / "runs/odd/report.md").read_text(encoding="utf-8")


def test_a_locale_that_knows_ascii_alone_and_a_path_beyond_it(tmp_path: Path) -> None:
    base = tmp_path / "Größe und 語"
    text = write_text(tmp_path / "mein Téxt")
    chain(runner(base, [], tmp_path, **ASCII_ONLY), text, base)


def test_a_checkout_that_is_read_only_and_no_home(tmp_path: Path) -> None:
    if not shutil.which("unshare") or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("a checkout cannot be mounted read-only here")
    base = tmp_path / "base dir"
    run = runner(base, ["unshare", "-rm", "sh", "-c", READ_ONLY, "sh"], ROOT, ROOT=str(ROOT), HOME="/proc/nowhere")
    chain(run, write_text(tmp_path / "text"), base)


JUMPING = """
import itertools, time
real, jumps = time.time, itertools.cycle([0, 31_536_000, -31_536_000, 3600, -60])
time.time = lambda: real() + next(jumps)
"""


def test_a_clock_that_jumps_by_years_changes_no_loss_and_no_duration(world: World, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(JUMPING)
    flags = (*TINY, "--num_iterations=6", "--save_every=3")
    jumping = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    for tag, more in (("calm-clock", {}), ("jumping-clock", jumping)):
        finished = world.run("scripts.base_train", *flags, f"--model_tag={tag}", **more)
        assert finished.returncode == 0, finished.stderr
    assert world.losses("jumping-clock") == world.losses("calm-clock")
    lines = (world.base / "runs/jumping-clock/base/metrics.jsonl").read_text().splitlines()
    elapsed = [row["elapsed_s"] for row in map(json.loads, lines) if "loss" in row]
    assert all(0 < first <= second < 300 for first, second in itertools.pairwise(elapsed))


def test_no_duration_is_measured_by_a_clock_that_can_be_set() -> None:
    asked = {path.name for path in (ROOT / "nanochat").rglob("*.py") if "time.time()" in path.read_text(encoding="utf-8")}
    assert asked == {"protocol.py", "server.py", "clock.py"}  # when an answer was made, and whether the clock is right


def test_without_a_home_the_run_script_asks_where_to_keep_things(tmp_path: Path) -> None:
    environment = {name: value for name, value in KEPT.items() if name != "HOME"}
    finished = subprocess.run(["bash", str(ROOT / "run3b.sh"), "--rehearse"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert finished.returncode == 2
    assert finished.stderr == "error: there is no HOME: set NANOCHAT_BASE_DIR to the directory where everything is to be kept\n"
    assert finished.stdout == ""
