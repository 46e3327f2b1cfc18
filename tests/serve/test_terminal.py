"""The terminal chat as a person uses it: a real terminal, a pipe, one question."""

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT, World, wrong_request
from tests.serve.conftest import CALL


class Terminal:
    """A program in a terminal of its own."""

    def __init__(self, world: World, *args: str):
        self.master, slave = pty.openpty()
        command = world.arguments("scripts.chat_cli", "--model_tag=talking", "-t", "0", "-m", "1000", *args)
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=world.environment(TERM="dumb"), stdin=slave, stdout=slave, stderr=slave, start_new_session=True
        )
        os.close(slave)
        self.text = ""

    def until(self, expected: str, seconds: float = 60) -> str:
        """Read until the text comes; returns what was read."""
        deadline = time.monotonic() + seconds
        start = len(self.text)
        while not re.search(expected, self.text[start:], re.DOTALL):
            assert time.monotonic() < deadline, f"{expected!r} did not come: {self.text[start:]!r}"
            if select.select([self.master], [], [], 0.2)[0]:
                try:
                    self.text += os.read(self.master, 4096).decode()
                except OSError:  # the other end is closed
                    assert re.search(expected, self.text[start:]), self.text
        return self.text[start:]

    def status(self, seconds: float = 60) -> int:
        """Its exit status, once it has left; what it writes is read meanwhile, or it would wait for that."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < deadline:
            if select.select([self.master], [], [], 0.1)[0]:
                with contextlib.suppress(OSError):
                    os.read(self.master, 4096)
        return self.process.wait(1)

    def type(self, line: str) -> None:
        os.write(self.master, line.encode() + b"\n")


@pytest.fixture
def terminal(talking: World) -> Iterator[Terminal]:
    one = Terminal(talking)
    one.until("> ")
    yield one
    one.process.kill()
    one.process.wait()
    os.close(one.master)


def test_one_question_and_a_pipe(talking: World) -> None:
    asked = talking.run("scripts.chat_cli", "-p", "Say yes.", "--model_tag=talking", "-t", "0")
    assert (asked.returncode, asked.stdout) == (0, "yes!\n"), asked.stderr
    call = talking.run("scripts.chat_cli", "-p", "What is 6*7?", "--model_tag=talking", "-t", "0")
    assert call.stdout == "[calculator: 6*7 = 42] 42!\n"
    command = talking.arguments("scripts.chat_cli", "--model_tag=talking", "-t", "0", "--guesses", "3")
    piped = subprocess.run(command, input="Say no.\n", cwd=ROOT, env=talking.environment(), capture_output=True, text=True)
    assert (piped.returncode, piped.stdout) == (0, "no!\n"), piped.stderr
    base = talking.run("scripts.chat_cli", "-i", "base", "-p", "The text", "--model_tag=talking", "-m", "3")
    assert base.stdout.startswith("The text")


def test_words_do_not_command_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    from nanochat.serve.terminal import _shown

    said = "a\x1b]0;owned\x07\x1b[2J\x9b1m\tb\n\u00e9"
    assert _shown(said) == said  # in a pipe as it is
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert _shown(said) == "a]0;owned[2J1m\tb\n\u00e9"


def test_bytes_that_are_no_text_are_a_question_all_the_same(talking: World) -> None:
    command = talking.arguments("scripts.chat_cli", "--model_tag=talking", "-t", "0", "-m", "2")
    piped = subprocess.run(
        command, input=b"caf\xe9\n", cwd=ROOT, env=talking.environment(PYTHONIOENCODING="utf-8:strict"), capture_output=True
    )
    assert piped.returncode == 0, piped.stderr


def test_a_conversation_in_a_terminal(terminal: Terminal, tmp_path: Path) -> None:
    terminal.type("Say yes.")
    assert "yes!" in terminal.until("yes!.*> $")
    terminal.type("/help")
    assert "/temperature" in terminal.until("/quit.*> $")
    terminal.type("/temperature 0.0")
    terminal.until("temperature 0.0")
    terminal.type("/temperature hot")
    terminal.until("error: /temperature hot: a number is expected")
    terminal.type("/nonsense")
    terminal.until("error: /nonsense: /help lists")
    terminal.type("/speed")
    terminal.until("are shown")
    terminal.type("/clear")
    terminal.until("a new conversation")
    terminal.type("What is 6*7?")
    assert "[calculator: 6*7 = 42] 42!" in terminal.until(r"\d tokens, [\d.]+ a second")
    terminal.type(f"/save {tmp_path}/kept.jsonl")
    terminal.until("wrote")
    kept = json.loads((tmp_path / "kept.jsonl").read_text())
    assert kept["messages"] == [{"role": "user", "content": "What is 6*7?"}, {"role": "assistant", "content": CALL}]
    terminal.type("/system Be kind.")
    terminal.until("the model is told: Be kind")
    terminal.type(f"/load {tmp_path}/kept.jsonl")
    terminal.until("going on after 2 messages")
    terminal.type("/load /no/such.jsonl")
    terminal.until("error: .*No such file")
    terminal.type("x " * 1500)
    terminal.until("error: this has .* tokens; the model takes 1,024, its answer included")
    terminal.type("/quit")
    assert terminal.status() == 0


def test_an_interrupt_stops_the_answer_and_another_one_leaves(terminal: Terminal) -> None:
    terminal.type("/speed")
    terminal.until("are shown.*> $")
    terminal.type("/temperature 9")  # it rambles, to the end of the context
    terminal.until("temperature 9.*> $")
    terminal.type("Go on.")
    terminal.until("Go on.\\r\\n.")
    os.killpg(terminal.process.pid, signal.SIGINT)
    said = re.search(r"(\d+) tokens, ", terminal.until(r"\d+ tokens, .*> $"))
    assert said
    assert int(said[1]) < 900
    terminal.type("/temperature 0")
    terminal.until("temperature 0.*> $")
    terminal.type("/clear")
    terminal.until("a new conversation")
    terminal.type("Say maybe.")
    terminal.until("maybe!.*> $")
    time.sleep(0.5)  # between showing its prompt and waiting, Python's readline misses a signal
    os.killpg(terminal.process.pid, signal.SIGINT)
    assert terminal.status() == 0


def test_wrong_requests(talking: World, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for args, words in (
        (("--model_tag=none", "-p", "x"), ("none", "talking")),
        (("--model=/no/such/dir", "-p", "x"), ("/no/such/dir", "OWNER/NAME")),
        ((f"--model={tmp_path}/empty", "-p", "x"), ("config.json",)),
        (("--model=someone/no-such-model", "-p", "x"), ("someone/no-such-model",)),
        (("-t", "-1", "-p", "x"), ("temperature",)),
        (("-p", "  "), ("empty",)),
        (("--top_p", "0", "-p", "x"), ("top_p",)),
        (("-m", "0", "-p", "x"), ("--max_tokens=0",)),
        (("-i", "best", "-p", "x"), ("--source=best",)),
        (("-i", "base", "--model_tag=talking"), ("no question",)),
        (("-p", "word " * 900, "--model_tag=talking"), ("tokens", "1,024")),
    ):
        wrong_request(talking.run("scripts.chat_cli", *args, HF_ENDPOINT="http://127.0.0.1:9"), *words)
