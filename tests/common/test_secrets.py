"""Secrets are hidden in whatever form they turn up, and nothing else is."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nanochat.common import secrets
from nanochat.common.secrets import hide, remember_arguments, remember_secrets, without_secrets
from tests.conftest import ROOT

VALUE = 'a"very/secret value+1'


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "_remembered", set())
    monkeypatch.setenv("SOME_TOKEN", VALUE)


@pytest.mark.parametrize(
    "name",
    [
        *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY", "NANOCHAT_API_KEY", "AWS_SECRET_ACCESS_KEY"),
        *("AWS_SESSION_TOKEN", "GITHUB_TOKEN", "PGPASSWORD", "DB_PASSWD", "MY_SECRET", "my_secrets", "GOOGLE_CREDENTIALS"),
    ],
)
def test_a_variable_of_a_secrets_name_is_hidden(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "correct-horse")
    assert hide("it is correct-horse, correct-horse") == "it is ***, ***"


@pytest.mark.parametrize(
    ("name", "value"), [("HF_HOME", "correct-horse"), ("WANDB_RUN", "correct-horse"), ("A_KEY", "short"), ("KEYS_OF", "correct-horse")]
)
def test_others_are_not(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    assert hide(f"it is {value}") == f"it is {value}"


def test_the_path_of_a_key_is_no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SSH_KEY", str(tmp_path))
    assert hide(f"{tmp_path}/a") == f"{tmp_path}/a"


def test_it_is_found_in_json_and_in_addresses() -> None:
    assert hide('{"a": "a\\"very/secret value+1"}') == '{"a": "***"}'
    assert hide("/x?q=a%22very%2Fsecret%20value%2B1&b=2") == "/x?q=***&b=2"


def test_each_line_of_a_long_one_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRIVATE_KEY", "-----BEGIN KEY-----\nabcdefghijkl\nmnopqrstuvwx\n")
    assert hide("at mnopqrstuvwx") == "at ***"


def test_a_longer_one_that_holds_a_shorter_one_is_hidden_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN", "12345678")
    monkeypatch.setenv("B_TOKEN", "1234567890")
    assert hide("1234567890 12345678") == "*** ***"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://me:pass@bucket/a b", "s3://***@bucket/a b"),
        ("https://tok-en@hub.org/x: refused", "https://***@hub.org/x: refused"),
        ("'http://u:p@ss@host/'", "'http://***@host/'"),
        ("https://h/x?X-Amz-Signature=ab12&Expires=3", "https://h/x?X-Amz-Signature=***&Expires=3"),
        ("https://h/x?a=1&token=ab12", "https://h/x?a=1&token=***"),
        ("Authorization: Bearer abcdefgh1234", "Authorization: Bearer ***"),
        (f"hf_{'aB3' * 10}", "hf_***"),
    ],
)
def test_shapes_of_secrets_are_hidden(text: str, shown: str) -> None:
    assert hide(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "https://huggingface.co/a/b@main",
        "a@b.org writes",
        "step 10/20 | loss 3.2",
        "git@github.com:a/b",
        "me/model@refs/pr/1",
        "?tokens=5",
        "Bearer of",
    ],
)
def test_what_is_none_stays(text: str) -> None:
    assert hide(text) == text


def test_values_inside_values_are_hidden() -> None:
    assert without_secrets({"a": [VALUE, 1, None], "b": {"c": (VALUE, 2.5)}, "d": True}) == {
        "a": ["***", 1, None],
        "b": {"c": ["***", 2.5]},
        "d": True,
    }


def test_flags_of_a_secrets_name_are_remembered() -> None:
    remember_secrets({"api_key": "my server's key", "depth": 4, "run": "my own run"})
    assert hide("my server's key, my own run") == "***, my own run"


@pytest.mark.parametrize(
    "flags",
    [
        ["--apikey=supersecretvalue123"],
        ["--api-keys", "supersecretvalue123"],
        ["--api_key=supersecretvalue123", "--depth=x"],
        ["--api_key", "supersecretvalue123", "supersecretvalue123"],
        ["--hf-token=" + "supersecretvalue123" * 9],  # of which a line of 80 characters shows a part
    ],
)
def test_a_wrong_command_line_does_not_show_one(flags: list[str]) -> None:
    command = [sys.executable, "-m", "scripts.chat_cli", *flags]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "SOME_TOKEN": "no part"})
    assert (finished.returncode, finished.stdout) == (2, "")
    assert "secret" not in finished.stderr


def test_numbers_of_tokens_are_shown() -> None:
    remember_arguments(["--eval_tokens=20000000", "--max-tokens", "10_000_000", "--data", "path/to/data", "--tokenizer=climbmix-4096"])
    assert hide("20000000 10_000_000 path/to/data climbmix-4096") == "20000000 10_000_000 path/to/data climbmix-4096"


PROGRAM = """
import logging, os, sys, warnings
from dataclasses import dataclass
from nanochat.common.cli import command
from nanochat.common.console import say, warn
from nanochat.common.errors import UserError

@dataclass(frozen=True)
class Settings:
    "Something."
    how: str = ""
    api_key: str = ""

def work(s):
    value = os.environ["SOME_TOKEN"] + s.api_key
    say(value); warn(value); print(value); print("a", value, file=sys.stderr); sys.stderr.writelines([value])
    logging.warning(value); warnings.warn(value)
    print(len(value), "characters")
    raise {"user": UserError, "bug": RuntimeError, "disk": lambda v: OSError(28, "full", v)}[s.how](value)

command(Settings, work)
"""


@pytest.mark.parametrize("how", ["user", "bug", "disk"])
@pytest.mark.parametrize("world_size", ["1", "2"])
def test_nothing_that_a_command_prints_shows_one(how: str, world_size: str) -> None:
    environment = {**os.environ, "SOME_TOKEN": VALUE, "WORLD_SIZE": world_size}
    command = [sys.executable, "-c", PROGRAM, f"--how={how}", "--api_key=another secret"]
    finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    said = finished.stdout + finished.stderr
    assert finished.returncode == (1 if how == "bug" else 2)
    assert "very/secret" not in said
    assert "another secret" not in said
    assert said.count("***") >= 7
    assert f"{len(VALUE) + 14} characters" in said
    assert ("Traceback" in said) == (how == "bug")
