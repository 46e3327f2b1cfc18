"""Keys and passwords are used and never shown: not in what is printed, nor in what a run keeps of itself."""

import json
import os
import re
import sys
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

NAME = re.compile(r"(?:token|key|secret|password|passwd|credential)s?$", re.IGNORECASE)
"""What a variable or a flag is called that holds a secret: HF_TOKEN, WANDB_API_KEY, --api_key, …"""
NUMBER = re.compile(r"[\d_.e+-]+", re.IGNORECASE)
LEAST_CHARS = 8  # a shorter one would turn up in words
SHOWN = "***"

SHAPES = (
    re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^/\s'\"]+(?=@)", re.IGNORECASE),  # user:password of a URL
    re.compile(r"([?&;][\w.-]*(?:token|key|secret|password|credential|signature|sig)=)[^&\s'\"#]+", re.IGNORECASE),  # a signed URL
    re.compile(r"(\b(?:Bearer|Basic)\s+)[\w.~+/=-]{8,}"),  # a header
    re.compile(r"(\bhf_)[A-Za-z0-9]{20,}"),  # the hub's own, which may come from the file that `hf auth login` keeps
)

_remembered: set[str] = set()


def remember_secrets(settings: Mapping[str, Any]) -> None:
    """Hide from now on what settings hold under a secret's name."""
    _remembered.update(_values(settings))


def remember_arguments(args: Sequence[str]) -> None:
    """The same of flags, `--name=value` and `--name value`, before it is known whether they mean anything."""
    for arg, following in zip(args, [*args, ""][1:], strict=True):
        name, equals, value = arg.partition("=")
        value = value if equals else following
        if name.startswith("--") and not NUMBER.fullmatch(value):  # --eval_tokens=20000000
            remember_secrets({name: value})


def _values(named: Mapping[str, Any]) -> Iterator[str]:
    """The values that are secret, also as they stand in JSON and in a URL; of one with several lines each line."""
    for name, value in named.items():
        if not isinstance(value, str) or not NAME.search(name) or os.path.exists(value):  # a file with a secret is none
            continue
        for line in value.splitlines():
            if len(line.strip()) >= LEAST_CHARS:
                yield from (line.strip(), json.dumps(line.strip())[1:-1], urllib.parse.quote(line.strip(), safe=""))


def hide(text: str) -> str:
    """The text with `***` for every secret: values of variables with a secret's name, passwords and signatures in URLs, keys in headers."""
    for value in sorted({*_remembered, *_values(os.environ)}, key=len, reverse=True):
        text = text.replace(value, SHOWN)
    for shape in SHAPES:
        text = shape.sub(rf"\g<1>{SHOWN}", text)
    return text


def without_secrets(value: Any) -> Any:
    """A value made of dicts, lists and plain values, with every string in it as `hide` shows it."""
    if isinstance(value, str):
        return hide(value)
    if isinstance(value, Mapping):
        return {key: without_secrets(each) for key, each in value.items()}
    return [without_secrets(each) for each in value] if isinstance(value, list | tuple) else value


def hide_in_output() -> None:
    """From now on secrets are hidden in all that this process prints from Python, tracebacks and other libraries' lines too."""
    stream: Any
    for stream in (sys.stdout, sys.stderr):
        if stream is None or hasattr(stream, "hides_secrets"):
            continue
        stream.write = _hiding(stream.write)
        stream.hides_secrets = True


def _hiding(write: Any) -> Any:
    def hidden(text: str) -> int:
        write(hide(text))
        return len(text)

    return hidden
