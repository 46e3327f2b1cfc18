"""Talking to a model in the terminal."""

import contextlib
import io
import json
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import FrameType
from typing import Annotated, Any, ClassVar

import tyro

from nanochat.common.console import warn
from nanochat.common.errors import UserError
from nanochat.common.files import atomic_path
from nanochat.common.paths import base_dir, named_path
from nanochat.serve.settings import TalkSettings

HELP = """/clear            begin a new conversation
/system TEXT      what the model is told before the conversation, which begins anew; without TEXT nothing
/temperature X    randomness; 0 takes the likeliest token each time
/save FILE        write the conversation down, as .jsonl that training reads
/load FILE        go on with a conversation from such a file
/speed            show tokens a second after each answer, or no more
/help             this
/quit             leave; Ctrl-D does too, and Ctrl-C stops an answer
"""
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
DIM, PLAIN = "\033[2m", "\033[0m"


@dataclass(frozen=True)
class ChatSettings(TalkSettings):
    """Talk to a chat model in the terminal; with -p ask one question and leave."""

    GROUPS: ClassVar[dict[str, str]] = {"What is asked": "prompt system", **TalkSettings.GROUPS, "Terminal": "speed seed"}

    prompt: Annotated[str, tyro.conf.arg(aliases=["-p"])] = ""
    """Answer this and leave; with --source=base continue it. Default: what comes through a pipe, else a conversation."""
    system: str = ""
    """What the model is told before the conversation. Default: nothing."""
    speed: bool = False
    """Show tokens a second after each answer."""
    seed: int = 0
    """Seed of the answers' randomness."""


def chat(settings: ChatSettings) -> None:
    """Answer one question, or talk until the person leaves. Raises UserError for a wrong request."""
    settings.check()
    for stream in (sys.stdin, sys.stdout):  # what is no text in the terminal's encoding is shown as such
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    prompt = settings.prompt
    if prompt and not prompt.strip():
        raise UserError("the question is empty: give one by -p, or through a pipe")
    if not prompt and not sys.stdin.isatty():
        prompt = sys.stdin.read().strip()
        if not prompt:
            raise UserError("there is no question: give one by -p, or through the pipe")
    from nanochat.serve.load import find_directory

    find_directory(settings)  # at once, where there is none
    import torch

    from nanochat.engine.engine import Engine
    from nanochat.serve.load import can_compile, open_model

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, tokenizer, name = open_model(settings, device)
    compiled = settings.compile and not prompt and settings.source != "base" and can_compile(device)
    engine = Engine(model, tokenizer, max_rows=1, guesses=settings.guesses, compiled=compiled)
    engine.warm_up()
    talk = Talk(settings, engine)
    if prompt:
        if settings.source == "base":
            talk.go_on(prompt)
        else:
            talk.ask(prompt)
        return
    if settings.source == "base":
        raise UserError("a base model continues text and does not converse: give the text by -p")
    print(f"{name}. /help lists what can be typed, Ctrl-D leaves.")
    talk.loop()


class Talk:
    """A conversation with a model."""

    def __init__(self, settings: ChatSettings, engine: Any):
        self.settings, self.engine = settings, engine
        self.messages: list[dict[str, Any]] = []
        self.system = settings.system

    def loop(self) -> None:
        """Read lines and answer them until the person leaves."""
        with _history():
            while True:
                try:
                    line = input("> ").strip()
                except EOFError:
                    print()
                    return
                except KeyboardInterrupt:
                    print()
                    return
                if line in ("/quit", "/exit"):
                    return
                if not line:
                    continue
                try:
                    if line.startswith("/"):
                        self._command(*line[1:].split(maxsplit=1))
                    else:
                        self.ask(line)
                except UserError as error:
                    print(f"error: {error}")

    def _command(self, name: str = "", rest: str = "") -> None:
        commands: dict[str, Callable[[str], None]] = {
            "clear": lambda _: self._begin(self.system),
            "system": self._begin,
            "temperature": self._temperature,
            "save": self._save,
            "load": self._load,
            "speed": self._speed,
            "help": lambda _: print(HELP, end=""),
        }
        if name not in commands:
            raise UserError(f"/{name}: /help lists what can be typed")
        commands[name](rest)

    def _begin(self, system: str) -> None:
        self.messages, self.system = [], system
        print("a new conversation" + (f"; the model is told: {system}" if system else ""))

    def _temperature(self, text: str) -> None:
        try:
            changed = replace(self.settings, temperature=float(text))
        except ValueError:
            raise UserError(f"/temperature {text}: a number is expected") from None
        changed.sampling().check()
        self.settings = changed
        print(f"temperature {changed.temperature}")

    def _speed(self, _: str) -> None:
        self.settings = replace(self.settings, speed=not self.settings.speed)
        print(f"tokens a second are {'' if self.settings.speed else 'not '}shown")

    def _whole(self) -> list[dict[str, Any]]:
        return [*([{"role": "system", "content": self.system}] if self.system else []), *self.messages]

    def _save(self, file: str) -> None:
        if not file or not self.messages:
            raise UserError("/save FILE writes the conversation down, once something was said")
        path = named_path(file)
        try:
            with atomic_path(path) as aside:
                aside.write_text(json.dumps({"messages": self._whole()}, ensure_ascii=False) + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"{path} cannot be written ({error.strerror})") from None
        print(f"wrote {path}")

    def _load(self, file: str) -> None:
        from nanochat.data.conversation_file import ConversationFile

        messages = list(ConversationFile(named_path(file))[0]["messages"])
        self.system = messages.pop(0)["content"] if messages[0]["role"] == "system" else ""
        if messages[-1]["role"] == "user":
            messages.pop()
        self.messages = messages
        print(f"going on after {len(messages)} messages")

    def ask(self, question: str) -> None:
        """Ask, and show the answer as it comes; both become part of the conversation."""
        from nanochat.engine.batch import turn_ends
        from nanochat.tokenizer.conversation import Renderer, parts_of

        self.messages.append({"role": "user", "content": question})
        try:
            fitted = Renderer(self.engine.tokenizer).fitted(self._whole(), self.engine.context, self.settings.max_tokens)
        except UserError:
            self.messages.pop()
            raise
        if fitted.left_out:
            warn(
                f"the conversation has {fitted.tokens:,} tokens, the model takes {self.engine.context:,} with its answer: "
                f"the first {fitted.left_out} messages are left out, {len(fitted.ids):,} tokens are kept"
            )
        ids = self._show(fitted.ids, turn_ends(self.engine.tokenizer), tools=True)
        parts = parts_of(self.engine.tokenizer, ids)
        if any(part["text"] for part in parts):
            self.messages.append({"role": "assistant", "content": parts})
        else:
            self.messages.pop()

    def go_on(self, text: str) -> None:
        """Show a text and what a base model says next."""
        tokenizer = self.engine.tokenizer
        sys.stdout.write(_shown(text))
        prompt = [tokenizer.bos_id, *tokenizer.encode(text)]
        kept = prompt[-(self.engine.context - 1) :]
        if len(kept) < len(prompt):
            warn(f"the text has {len(prompt):,} tokens, the model takes {self.engine.context:,}: its last {len(kept):,} are kept")
        self._show(kept, frozenset({tokenizer.bos_id}), tools=False)

    def _show(self, prompt: list[int], stops: frozenset[int], tools: bool) -> list[int]:
        """Stream an answer; Ctrl-C stops it. Returns its tokens."""
        from nanochat.engine.text import TextStream

        s = self.settings
        text, kind = TextStream(self.engine.tokenizer), "text"
        started = time.perf_counter()
        one = self.engine.add(prompt, s.max_tokens, replace(s.sampling(), seed=s.seed), stops=stops, tools=tools)

        def show(pieces: list[Any]) -> None:
            nonlocal kind
            for piece in pieces:
                if piece.kind != kind:
                    sys.stdout.write(_border(kind, piece.kind))
                    kind = piece.kind
                sys.stdout.write(_shown(piece.text))
            sys.stdout.flush()

        with _interruptible() as stopped:
            for ids in self.engine.stream(one):
                show(text.push(ids))
                if stopped():
                    self.engine.cancel(one)
                    break
        show(text.finish())
        sys.stdout.write(_border(kind, "text") + "\n")
        if s.speed:
            seconds = time.perf_counter() - started
            print(_dim(f"{len(one.ids)} tokens, {len(one.ids) / seconds:.1f} a second"))
        return list(one.ids)


def _shown(text: str) -> str:
    """A model's words for a terminal, which they must not command: control characters are left out there."""
    return CONTROL.sub("", text) if sys.stdout.isatty() else text


def _dim(text: str) -> str:
    return f"{DIM}{text}{PLAIN}" if sys.stdout.isatty() else text


def _border(before: str, after: str) -> str:
    """What stands between two kinds of text."""
    if (before, after) == ("python", "python_output"):
        return " = "
    return ("] " if before != "text" else "") + {"python": "[calculator: ", "python_output": "[= "}.get(after, "")


@contextlib.contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Within it the first Ctrl-C only sets what is returned; a second one leaves."""
    asked = [False]

    def note(number: int, frame: FrameType | None) -> None:
        if asked[0]:
            raise KeyboardInterrupt
        asked[0] = True

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: asked[0]
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _history() -> Iterator[None]:
    """Line editing, with the lines of earlier sessions."""
    try:
        import readline
    except ImportError:  # a Python that was built without it
        yield
        return
    path = base_dir() / "chat_history"
    with contextlib.suppress(OSError):
        readline.read_history_file(path)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            readline.set_history_length(1000)
            readline.write_history_file(path)
