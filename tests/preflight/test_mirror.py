"""A mirror that takes files and some that do not."""

from pathlib import Path

import pytest

from nanochat.preflight import mirror
from nanochat.preflight.check import GREEN, RED, YELLOW
from nanochat.preflight.settings import PreflightSettings

SETTINGS = PreflightSettings(depth=2)


@pytest.mark.usefixtures("machine")
def test_only_where_one_is_named_and_on_the_first_node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CHECKPOINT_MIRROR", raising=False)
    assert mirror.check(SETTINGS) == []
    monkeypatch.setenv("CHECKPOINT_MIRROR", str(tmp_path / "there"))
    monkeypatch.setenv("RANK", "8")
    assert mirror.check(SETTINGS) == []


@pytest.mark.usefixtures("machine")
def test_one_that_takes_files_keeps_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CHECKPOINT_MIRROR", str(tmp_path / "there"))
    (finding,) = mirror.check(SETTINGS)
    assert finding.status == GREEN
    assert not [path for path in (tmp_path / "there").rglob("*") if path.is_file()]


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(("address", "words"), [("{file}/there", "Not a directory"), ("nosuch://bucket/path", "nosuch")])
def test_one_that_does_not_is_red(address: str, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CHECKPOINT_MIRROR", address.format(file=tmp_path / "file"))
    (finding,) = mirror.check(SETTINGS)
    assert finding.status == RED
    assert words in finding.value
    assert "CHECKPOINT_MIRROR" in finding.advice


@pytest.mark.usefixtures("machine")
def test_one_that_fails_stops_a_stage_that_begins_and_not_one_that_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = tmp_path / "base/runs/d2"
    monkeypatch.setenv("CHECKPOINT_MIRROR", "nosuch://bucket/path")
    for there, status in (
        ("base", RED),
        ("base/checkpoints/step_00000500", YELLOW),
        ("base/model", RED),
        ("mid/checkpoints/step_00000100", YELLOW),
        ("mid/model", RED),
    ):
        (run / there).mkdir(parents=True)
        (finding,) = mirror.check(SETTINGS)
        assert finding.status == status, there
