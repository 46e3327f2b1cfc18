"""What `--help` prints: of every command its flags in groups, each with what it does and its default, and examples that work."""

import dataclasses
import functools
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import ClassVar
from unittest import mock

import pytest

from nanochat.common.cli import parse
from nanochat.common.help import flags_of, groups_of, help_of

ROOT = Path(__file__).parents[1]
COMMANDS = sorted(path.stem for path in (ROOT / "scripts").glob("*.py") if path.stem != "__init__")
OWN_FLAGS = [name for name in COMMANDS if name != "launch"]  # whose flags are torchrun's
HEAVY = ("torch", "pyarrow", "transformers", "wandb", "huggingface_hub", "tiktoken", "rustbpe", "datasets", "fastapi")
MOST_WITHOUT_GROUPS = 8
REQUIRED = {"mirror": ["--model_tag=d4"], "compare_loss": ["HEAD", "."], "ablate": ["grid.toml"]}

each_command = pytest.mark.parametrize("name", COMMANDS)
each_with_flags = pytest.mark.parametrize("name", OWN_FLAGS)


@functools.cache
def settings_of(name: str) -> type:
    """The settings dataclass that a script hands over, which must hand over its docstring too."""
    handed_over: list[tuple] = []
    with mock.patch("nanochat.common.cli.command", lambda *args: handed_over.append(args)):
        done = runpy.run_module(f"scripts.{name}", run_name="__main__")
    ((settings_class, _, doc),) = handed_over
    assert doc == done["__doc__"]
    return settings_class


def commands_in(text: str) -> list[tuple[str, list[str]]]:
    """The script and the arguments of each line to type; what stands before, torchrun or a pipe, is left out."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            start = max(at for at, word in enumerate(words) if word == "-m")
            found.append((words[start + 1].removeprefix("scripts."), words[start + 2 :]))
    return found


@functools.cache
def pages() -> dict[str, str]:
    """What each command prints for --help at 80 columns, all in one process; and that none of them loads what is heavy."""
    program = f"""
import contextlib, io, json, runpy, sys
pages = {{}}
for name in {COMMANDS}:
    sys.argv, printed = [name, "--help"], io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            runpy.run_module(f"scripts.{{name}}", run_name="__main__")
    except SystemExit as leaving:
        assert not leaving.code, (name, leaving.code)
    loaded = [heavy for heavy in {HEAVY} if heavy in sys.modules]
    assert not loaded, (name, loaded)
    pages[name] = printed.getvalue()
json.dump(pages, sys.stdout)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, env={**os.environ, "COLUMNS": "80"})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@each_command
def test_the_page_is_what_is_typed_and_fits_80_columns(name: str) -> None:
    page = pages()[name]
    assert page.startswith(f"usage: python -m scripts.{name} ")
    assert "--help" in page.splitlines()[0]
    assert [line for line in page.splitlines() if len(line) > 80] == []


@each_command
def test_examples_are_commands_that_would_be_taken(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", [name])
    _, _, examples = pages()[name].partition("\nExamples:\n")
    found = commands_in(examples)
    assert found
    for script, arguments in found:
        assert script == name or name == "launch"
        settings = parse(settings_of(script), arguments)
        check = getattr(settings, "validate", None) or getattr(settings, "check", None)
        if check:
            check()


@each_with_flags
def test_every_flag_says_what_it_does_and_its_default_once(name: str) -> None:
    for flag in flags_of(settings_of(name)):
        own = set(flag.name.split("_")) | {"default", "the", "a", "of", "for", "none", "on", "off"}
        does = re.split(r"Default:|Required\.", flag.about)[0]
        assert len(set(re.findall(r"[a-z]+", does.lower())) - own) >= 2, flag
        assert len(re.findall(r"Default:|Required\.", flag.about)) == 1, flag
        assert flag.about.endswith("."), flag
        assert flag.about[0].isupper() or flag.about.startswith("`"), flag


@each_with_flags
def test_a_default_that_stands_for_something_is_explained(name: str) -> None:
    defaults = {field.name: field.default for field in dataclasses.fields(settings_of(name))}
    for flag in flags_of(settings_of(name)):
        does, _, default = flag.about.partition("Default:")
        if defaults[flag.name] == -1:
            assert "-1 for" in does or "-1 to" in does or "Not " in does or default.strip(" \xa0") != "-1.", flag
        if defaults[flag.name] in ("", None):
            assert default or does.endswith("Required."), flag


@each_with_flags
def test_many_flags_stand_in_groups(name: str) -> None:
    names, groups = [flag.name for flag in flags_of(settings_of(name))], groups_of(settings_of(name))
    in_groups = [each for group in groups.values() for each in group.split()]
    assert sorted(in_groups) == sorted(names) if groups else len(names) <= MOST_WITHOUT_GROUPS
    for title in groups:
        assert f"\n{title}:\n" in pages()[name]


def names_in(written: str) -> list[str]:
    """The names of a flag, without the kind of its value."""
    return re.findall(r"(?<!\S)--?\w+", written)


@each_with_flags
@pytest.mark.parametrize("between", ["_", "-"])
def test_flags_are_taken_as_the_page_writes_them(name: str, between: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", [name])
    settings_class, arguments = settings_of(name), REQUIRED.get(name, [])
    usual = parse(settings_class, arguments)
    flags = [flag for flag in flags_of(settings_class) if not flag.in_place]
    given = {re.split("[= ]", each)[0] for each in arguments}
    for place in range(max(len(names_in(flag.written)) for flag in flags)):
        typed, wanted = list(arguments), usual
        for flag in flags:
            value, written = getattr(usual, flag.name), names_in(flag.written)[place : place + 1]
            if not written or written[0] in given:
                continue
            is_long = written[0].startswith("--")
            spelled = written[0].replace("_", between) if is_long else written[0]
            if isinstance(value, bool):
                typed.append(spelled)
                wanted = dataclasses.replace(wanted, **{flag.name: not written[0].startswith("--no_")})
            else:
                value = value if value is not None else "something"
                typed += [f"{spelled}={value}"] if is_long else [spelled, str(value)]
                wanted = dataclasses.replace(wanted, **{flag.name: value})
        assert parse(settings_class, typed) == wanted


@dataclasses.dataclass(frozen=True)
class Plain:
    """Something."""

    GROUPS: ClassVar[dict[str, str]] = {"Second": "size", "First": "path rate"}

    path: str = ""
    """Where to. Default: nowhere."""
    size: int = 10_000
    """Bytes of it."""
    rate: float = 1.0
    """Share of it."""


@dataclasses.dataclass(frozen=True)
class Derived(Plain):
    """Something else."""

    size: int = 2
    """Bytes of the other."""
    rate: float = 0.5
    quick: bool = False
    """Less of it."""
    well: bool = True
    """All of it."""


def test_texts_groups_and_defaults_are_inherited_and_can_be_given_anew() -> None:
    assert [line for line in help_of(Derived, "it", "it --quick").splitlines() if line] == [
        "usage: it [--help] [FLAGS]",
        "Something else.",
        "Second:",
        "  --size INT               Bytes of the other. Default: 2.",
        "First:",
        "  --path TEXT              Where to. Default: nowhere.",
        "  --rate FLOAT             Share of it. Default: 0.5.",
        "Other flags:",
        "  --quick                  Less of it. Default: off.",
        "  --well, --no_well        All of it. Default: on.",
        "A flag may be written with - for _, and as --flag=VALUE or --flag VALUE.",
        "Examples:",
        "  it --quick",
    ]
    assert "Bytes of it. Default: 10,000." in help_of(Plain, "it")


@pytest.mark.parametrize("columns", [20, 60, 100, 200])
def test_the_page_follows_the_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = help_of(settings_of("base_train"), "it").splitlines()
    longest = max(len(line) for line in lines if not line.startswith("  --"))
    assert columns - 12 < longest < max(columns, 41)
