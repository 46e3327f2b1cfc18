"""Locks where the file system has the kernel's, and where it has none, as on some network homes."""

import contextlib
import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanochat.common.locks import TakenError, locked
from tests.conftest import ROOT
from tests.data.hub_server import serve
from tests.data.test_hub_text import parquet

WITHOUT_FLOCK = """
import errno, fcntl, os
def flock(file, how):
    raise OSError({number}, os.strerror({number}))
fcntl.flock = flock
"""
KINDS = {"flock": 0, "no server of locks": errno.ENOLCK, "not implemented": errno.ENOSYS, "not supported": errno.EOPNOTSUPP}
HOLD = """
import sys
from pathlib import Path
from nanochat.common.locks import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(params=KINDS, ids=lambda kind: kind.replace(" ", "-"))
def environment(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """That of processes whose file system has locks of this kind; this process's own is of the same kind."""
    paths = [str(ROOT)]
    if number := KINDS[request.param]:
        (tmp_path / "site").mkdir()
        (tmp_path / "site/sitecustomize.py").write_text(WITHOUT_FLOCK.format(number=number))
        paths.insert(0, str(tmp_path / "site"))

        def flock(file: int, how: int) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr("fcntl.flock", flock)
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "NANOCHAT_BASE_DIR": str(tmp_path / "base")}


@contextlib.contextmanager
def holder(path: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock until its input ends."""
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_process_does_not_get_it_until_the_first_lets_go(tmp_path: Path, environment: dict[str, str]) -> None:
    path = tmp_path / ".lock"
    with holder(path, environment) as first:
        with pytest.raises(TakenError), locked(path, patience_s=0):
            raise AssertionError("two hold it")
        first.communicate("")
        with locked(path, patience_s=30):
            pass


def test_a_killed_holder_keeps_nobody_out(tmp_path: Path, environment: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / ".lock"
    with holder(path, environment) as first:
        first.kill()
        first.wait()
        with locked(path, patience_s=30, waiting="waiting"):
            pass


def test_an_error_within_is_not_taken_for_a_lock_that_is_held(tmp_path: Path, environment: dict[str, str]) -> None:
    with pytest.raises(TimeoutError), locked(tmp_path / ".lock", patience_s=0):
        raise TimeoutError
    with locked(tmp_path / ".lock", patience_s=0):
        pass


def test_two_downloads_into_one_directory_do_the_work_once(tmp_path: Path, environment: dict[str, str]) -> None:
    with serve() as hub:
        for index in (0, 1, 6542):
            hub.files[f"shard_{index:05d}.parquet"] = parquet(f"first of {index}", f"second of {index}")
        hub.faults = {"shard_06542.parquet": ["cut"]}
        more = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1", "NANOCHAT_DOWNLOAD_FIRST_WAIT_S": "0.5"}
        command = [sys.executable, "-m", "scripts.dataset", "--num_shards", "2"]
        both = [subprocess.Popen(command, env={**environment, **more}, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        said = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert dict(hub.downloads()) == {"shard_06542.parquet": 2, "shard_00000.parquet": 1, "shard_00001.parquet": 1}
    assert sum("already there" in each for each in said) == 1
