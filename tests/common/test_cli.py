"""The command line: both spellings, one line for what is wrong, the exit status."""

import errno
from dataclasses import dataclass

import pytest

from nanochat.common.cli import command, parse
from nanochat.common.errors import Stopped, UserError


@dataclass(frozen=True)
class Settings:
    """Something."""

    batch_size: int = 4
    """A number."""
    every: int = 10
    """Another."""
    compile: bool = True
    """A switch."""


@pytest.mark.parametrize("arguments", [["--batch_size=7"], ["--batch-size=7"], ["--batch_size", "7"], ["--", "--batch_size=7"]])
def test_both_spellings_are_taken(arguments: list[str]) -> None:
    assert parse(Settings, arguments) == Settings(batch_size=7)


def test_minus_one_and_switches() -> None:
    assert parse(Settings, ["--every=-1", "--no-compile"]) == Settings(every=-1, compile=False)
    assert parse(Settings, ["--every", "-1"]) == Settings(every=-1)


@pytest.mark.parametrize(("argument", "word"), [("--bath_size=7", "--bath_size=7"), ("--batch_size=x", "--batch_size"), ("stray", "stray")])
def test_what_is_wrong_is_one_line_that_names_it(argument: str, word: str) -> None:
    with pytest.raises(UserError, match=word) as caught:
        parse(Settings, [argument])
    assert "\n" not in str(caught.value)
    assert "│" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (UserError("no such thing"), 2, "error: no such thing"),
        (OSError(errno.ENOSPC, "No space left on device", "/data/file"), 2, "the disk is full at /data/file"),
        (OSError(errno.EACCES, "Permission denied", "/data/file"), 2, "not allowed at /data/file"),
        (Stopped("saved"), 75, ""),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_the_exit_status_says_how_it_went(
    error: BaseException, status: int, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(_: Settings) -> None:
        raise error

    monkeypatch.setattr("sys.argv", ["x"])
    with pytest.raises(SystemExit) as leaving:
        command(Settings, fails)
    assert leaving.value.code == status
    assert words in capsys.readouterr().err


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: Settings) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("sys.argv", ["x"])
    with pytest.raises(ZeroDivisionError):
        command(Settings, fails)
