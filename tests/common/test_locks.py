"""Locks where the file system has the kernel's, and where it has none, as on some network homes."""

import contextlib
import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanochat.common import locks
from nanochat.common.errors import UserError
from nanochat.common.locks import TakenError, locked
from nanochat.train.run_directory import StageDirectory
from tests.conftest import ROOT
from tests.data.hub_server import serve
from tests.data.test_hub_text import parquet

WITHOUT_FLOCK = """
import errno, fcntl, os
def flock(file, how):
    raise OSError({number}, os.strerror({number}))
fcntl.flock = flock
"""
KINDS = {"flock": 0, "not implemented": errno.ENOSYS, "not supported": errno.EOPNOTSUPP}
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


def test_a_killed_holder_is_not_waited_for(tmp_path: Path, environment: dict[str, str]) -> None:
    with holder(tmp_path / ".lock", environment) as first:
        first.kill()
        first.wait()
        with locked(tmp_path / ".lock", patience_s=0):
            pass


def test_what_an_earlier_lock_of_the_kernel_has_left_keeps_nobody_out(tmp_path: Path, environment: dict[str, str]) -> None:
    (tmp_path / ".lock").touch()
    with locked(tmp_path / ".lock", patience_s=0):
        pass


@pytest.mark.parametrize("content", ["123\nan-old-container\n", ""])
def test_a_marker_that_nobody_can_judge_is_named_with_what_to_do(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def flock(file: int, how: int) -> None:
        raise OSError(errno.ENOSYS, "not implemented")

    monkeypatch.setattr("fcntl.flock", flock)
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    stage = StageDirectory("tag", "base")
    marker = stage.path / ".lock.held"
    marker.parent.mkdir(parents=True)
    marker.write_text(content)
    who = "process 123 on an-old-container" if content else "a process that left no name"
    with pytest.raises(UserError) as raised, stage.locked():
        raise AssertionError("held by another")
    for part in ("another process is training", who, f"should it be gone, remove {marker}"):
        assert part in str(raised.value)
    with pytest.raises(TakenError), locked(stage.path / ".lock", patience_s=0.3, waiting="waiting"):
        raise AssertionError("held by another")
    assert f"waiting ({who}; should it be gone, remove {marker})" in capsys.readouterr().out
    marker.unlink()
    with stage.locked():
        pass


def answers(monkeypatch: pytest.MonkeyPatch, away: list[bool]) -> None:
    """Let flock find no server of locks, as often as `away` says so, the last word holding for ever."""
    real = fcntl.flock

    def flock(file: int, how: int) -> None:
        if away.pop(0) if len(away) > 1 else away[0]:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
        real(file, how)

    monkeypatch.setattr("fcntl.flock", flock)


def test_a_server_of_locks_that_is_away_for_a_moment_lets_no_second_one_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / ".lock"
    with holder(path, {**os.environ, "PYTHONPATH": str(ROOT)}) as first:
        answers(monkeypatch, [True, True, False])
        with pytest.raises(TakenError), locked(path, patience_s=0):
            raise AssertionError("two hold it")
        first.communicate("")
        answers(monkeypatch, [True, True, False])
        with locked(path, patience_s=0):
            pass


def test_a_server_of_locks_that_stays_away_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "LOCKS_AWAY_S", 0.2)
    answers(monkeypatch, [True])
    with pytest.raises(UserError, match=r"\.lock cannot be locked .*server of locks"), locked(tmp_path / ".lock", patience_s=0):
        raise AssertionError("nobody said that it is free")


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
