"""wandb's own client against a server on this machine: one that answers, one that stops to, one that never says a word, none at all."""

import json
import time
from pathlib import Path
from typing import IO, Any

import pytest

from nanochat.train import wandb_run
from nanochat.train.wandb_run import WandbRun
from tests.train.wandb_file import read_run
from tests.train.wandb_server import WandbServer, silent_server, wandb_server

STEPS = 8


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "runs/d2/base"
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps({"settings": {"depth": 2}, "identity": {"vocab_size": 700}}))
    (directory / "metrics.jsonl").write_text(json.dumps({"step": 0, "loss": 9.0}) + "\n")
    for name, value in {
        "WANDB_API_KEY": "a" * 40,
        "WANDB_INIT_TIMEOUT": "2",
        "HOME": str(tmp_path),
        "WANDB_SERVICE": "3-1-tcp-localhost-9",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return directory


def log(file: IO[str], first: int, last: int) -> None:
    for step in range(first, last + 1):
        row: dict[str, Any] = {"step": step, "loss": 8.0 - step}
        file.write(json.dumps({**row, "alert": "the disk is full"} if step == 2 else row)[:-1])
        file.flush()
        time.sleep(0.02)
        file.write("}\n")
        file.flush()


def wait_for(server: WandbServer, rows: int) -> None:
    deadline = time.monotonic() + 60
    while len(server.rows) < rows and time.monotonic() < deadline:
        time.sleep(0.1)


def test_rows_and_alerts_are_sent_as_they_come(stage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with wandb_server() as server, (stage / "metrics.jsonl").open("a") as file:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        run = WandbRun(stage, "mine", 0)
        log(file, 1, STEPS)
        run.close()
    assert [(row["step"], row["loss"]) for row in server.rows] == [(step, 8.0 - step) for step in range(1, STEPS + 1)]
    assert server.operations.count("NotifyScriptableRunAlert") == 1


def test_down_in_the_middle_training_waits_no_longer_than_it_must(
    stage: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(wandb_run, "CLOSE_S", 2.0)
    with wandb_server() as server, (stage / "metrics.jsonl").open("a") as file:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        run = WandbRun(stage, "mine", 0)
        log(file, 1, 4)
        wait_for(server, 1)
        server.down.set()
        started = time.monotonic()
        log(file, 5, STEPS)
        assert time.monotonic() - started < 2
        run.close()
        assert time.monotonic() - started < 10
    said = capfd.readouterr().err
    assert "wandb has not taken everything" in said
    assert f"wandb sync {stage}/wandb/run-*" in said
    assert [row["step"] for row in server.rows] == list(range(1, len(server.rows) + 1))
    _, rows = read_run(next((stage / "wandb").glob("run-*")))  # what `wandb sync` sends
    assert {row["_step"] for row in rows} >= set(range(1, 4))


@pytest.mark.parametrize("kind", ["silent", "none"])
def test_never_there_the_run_is_kept_for_later(
    stage: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], kind: str
) -> None:
    with silent_server() as silent, (stage / "metrics.jsonl").open("a") as file:
        monkeypatch.setenv("WANDB_BASE_URL", silent if kind == "silent" else "http://127.0.0.1:9")
        run = WandbRun(stage, "mine", 0)
        log(file, 1, STEPS)
        run.close()
    said = capfd.readouterr().err
    assert "warning: wandb could not be started" in said
    assert f"wandb sync {stage}/wandb/offline-run-*" in said
    name, rows = read_run(next((stage / "wandb").glob("offline-run-*")))
    assert name == "mine"
    assert [row["loss"] for row in rows] == [8.0 - step for step in range(1, STEPS + 1)]


def test_it_ends_when_training_is_killed(stage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = WandbRun(stage, "mine", -1)
    assert run._process.stdin
    run._process.stdin.close()  # as the kernel does it
    assert run._process.wait(60) == 0
    assert [row["loss"] for row in read_run(next((stage / "wandb").glob("offline-run-*")))[1]] == [9.0]
