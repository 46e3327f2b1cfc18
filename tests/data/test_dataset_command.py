"""python -m scripts.dataset: wrong requests, a directory that cannot be written, two at once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "scripts.dataset", *args]


def run(base: Path, *args: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "NANOCHAT_BASE_DIR": str(base)}
    return subprocess.run(command(*args), env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--data", "foo"], ["'foo'", "climbmix", "path:DIR"]),
        (["--data", "path:/no/such/place"], ["/no/such/place", "no such directory"]),
        (["--data", "python", "--num_shards", "32"], ["32", "31 train shards"]),
        (["--data", "fineweb-edu", "--num_shards", "1823"], ["1823", "1,822 train shards"]),
        (["--data", "python", "--num_shards", "0"], ["--num_shards", "0"]),
        (["--data", "python", "--num-shards", "abc"], ["abc"]),
        (["--data", "python", "--num_workers", "0"], ["--num_workers", "0"]),
        (["--shards", "3"], ["--shards"]),
    ],
)
def test_wrong_requests_are_one_line_and_status_2(tmp_path: Path, args: list[str], said: list[str]) -> None:
    done = run(tmp_path, *args)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    for part in said:
        assert part in done.stderr


def test_heavy_libraries_are_not_imported_to_parse() -> None:
    code = "import sys, nanochat.data.make_text; print([m for m in ('torch', 'pyarrow', 'huggingface_hub', 'numpy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_base_directory_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    done = run(tmp_path / "base", "--data", "python")
    assert done.returncode == 2
    assert "NANOCHAT_BASE_DIR" in done.stderr


def test_a_second_run_waits_for_the_first(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "a.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    assert run(tmp_path / "base", "--data", f"path:{mine}").returncode == 0
    (name,) = (path.name for path in (tmp_path / "base/data").iterdir() if path.is_dir())
    (mine / "b.txt").write_text("three")
    environment = {**os.environ, "NANOCHAT_BASE_DIR": str(tmp_path / "base")}
    with FileLock(tmp_path / f"base/data/.{name}.lock"):
        second = subprocess.Popen(command("--data", f"path:{mine}"), env=environment, stdout=subprocess.PIPE, text=True)
        assert second.stdout is not None
        assert "waiting" in second.stdout.readline()
        assert second.poll() is None
    rest, _ = second.communicate(timeout=60)
    assert second.returncode == 0
    assert "3 documents" in rest
