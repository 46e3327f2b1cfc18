"""Disks that are full, of few files, read-only, slow or several: small ones of memory, really mounted."""

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanochat.preflight import disks
from nanochat.preflight.check import GREEN, RED, YELLOW, Finding
from nanochat.preflight.settings import PreflightSettings
from tests.preflight.nvidia import Machine

SMALL = PreflightSettings(depth=2, vocab_size=700, max_seq_len=64, num_iterations=10, data="climbmix")
"""Half a gigabyte, nearly all of it the one shard of text and its tokens that are the least that the plan knows."""


@contextlib.contextmanager
def disk(at: Path, options: str) -> Iterator[None]:
    at.mkdir(parents=True, exist_ok=True)
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(at)], capture_output=True).returncode:
        pytest.skip("no disk may be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", str(at)], check=True)


def found(settings: PreflightSettings = SMALL) -> dict[str, Finding]:
    return {finding.name: finding for finding in disks.check(settings)}


def base() -> Path:
    return Path(os.environ["NANOCHAT_BASE_DIR"])


@pytest.mark.usefixtures("machine")
def test_a_disk_with_room_is_green_and_left_as_it_was() -> None:
    if shutil.disk_usage("/tmp").free < 2e9:
        pytest.skip("there is no room on this machine's own disk")
    findings = found()
    assert [(each.name, each.status) for each in findings.values()] == [("disk", GREEN), ("disk speed", GREEN)]
    assert "GB free, and this run needs 0.5 GB more (text 0.2, token shards 0.2" in findings["disk"].value
    assert list(base().iterdir()) == []


@pytest.mark.usefixtures("machine")
def test_a_disk_that_is_too_small_is_red() -> None:
    with disk(base(), "size=64m"):
        finding = found()["disk"]
        assert finding.status == RED
        assert f"{base()} has 0.1 GB free, and this run needs 0.5 GB more" in finding.value
        assert list(base().iterdir()) == []


@pytest.mark.usefixtures("machine")
def test_a_full_disk_is_red_and_not_filled_further() -> None:
    with disk(base(), "size=1m"):
        with contextlib.suppress(OSError), (base() / "full").open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        findings = found()
        assert findings["disk"].status == RED
        assert "No space left" in findings["disk speed"].value


@pytest.mark.usefixtures("machine")
def test_what_is_on_the_disk_already_needs_no_room() -> None:
    with disk(base(), "size=300m"):
        assert found()["disk"].status == RED
        for name, size in (("data/climbmix/shard_00000.parquet", 80_000_000), ("tokens/climbmix-12/shard.bin", 90_000_000)):
            (base() / name).parent.mkdir(parents=True)
            (base() / name).write_bytes(bytes(size))
        finding = found()["disk"]
        assert finding.status == RED  # 130 MB are left and 245 still to come
        (base() / "runs/d2/base/model").mkdir(parents=True)
        assert found()["disk"].status == GREEN


@pytest.mark.usefixtures("machine")
def test_a_disk_that_has_room_for_base_training_only_is_yellow() -> None:
    settings = PreflightSettings(depth=6, vocab_size=700, max_seq_len=64, num_iterations=10, data="climbmix")
    needs = found(settings)["disk"].value
    with disk(base(), "size=800m"):
        finding = found(settings)["disk"]
        assert finding.status == YELLOW, needs
        assert "base training fits" in finding.advice


@pytest.mark.usefixtures("machine")
def test_a_disk_that_takes_too_few_files_is_red() -> None:
    with disk(base(), "size=1g,nr_inodes=200"):
        findings = found()
        assert findings["files"].status == RED
        assert "files more, and this run makes up to" in findings["files"].value
        assert findings["disk"].status == GREEN


@pytest.mark.usefixtures("machine")
def test_a_disk_that_cannot_be_written_is_red() -> None:
    with disk(base(), "size=1g"):
        subprocess.run(["mount", "-o", "remount,ro", str(base())], check=True)
        assert [(each.name, each.status) for each in found().values()] == [("disk", RED)]


@pytest.mark.usefixtures("machine")
def test_each_disk_is_looked_at_by_itself() -> None:
    with disk(base(), "size=1g"), disk(base() / "runs", "size=2m"):
        findings = found()
        assert findings["disk"].status == GREEN
        other = findings[f"disk of {base() / 'runs'}"]
        assert other.status == RED
        assert "text" not in other.value


def test_a_disk_that_is_slow_to_flush_is_not_taken_for_one_that_is_slow_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync, flushes = os.fsync, list[int]()

    def slow(descriptor: int) -> None:
        flushes.append(os.fstat(descriptor).st_size)
        time.sleep(0.2)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", slow)
    began = time.perf_counter()
    with disk(tmp_path / "disk", "size=1g"):
        speed = disks.write_speed(tmp_path / "disk")
        assert list((tmp_path / "disk").iterdir()) == []
    assert speed < 4 * max(flushes) / 0.2
    assert speed > 100e6  # one stream with a flush every 16 MiB would have 84
    assert sum(flushes) < 2 * disks.MOST_BYTES
    assert time.perf_counter() - began < 10


def test_a_disk_on_which_training_would_wait_is_yellow(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine([{}] * 8)
    monkeypatch.setattr(disks, "write_speed", lambda directory, most_bytes: 1e6)
    settings = PreflightSettings(nproc_per_node=8)
    finding = found(settings)["disk speed"]
    assert finding.status == YELLOW
    assert "1 MB/s: a checkpoint of 25.4 GB in 25,402 s, every " in finding.value
    monkeypatch.setattr(disks, "write_speed", lambda directory, most_bytes: 10e9)
    assert found(settings)["disk speed"].status == GREEN
