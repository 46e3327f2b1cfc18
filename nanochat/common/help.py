"""The page that `--help` prints: what a command does, its flags in groups, and examples.

A settings dataclass says what belongs together in a table of its own, `GROUPS`: under each title the names of its flags with blanks
between, all in the order of the page. The text of a flag is the docstring below its field. Where `Default:` stands in that text it says
what an empty value or a -1 falls back to, and the page adds nothing, as after `Required.`; otherwise it shows the field's default.
"""

import ast
import dataclasses
import functools
import inspect
import itertools
import shutil
import textwrap
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import tyro

Entry = tuple[str, str]
"""How a flag is written, and what it does."""

LEFT = 27  # columns of the flags; a longer one has a line of its own
LEAST_WIDTH = 40
WITH_COMMAS = 10_000  # and more
KEPT_BLANK = "\xa0"  # no line ends there
NOTE = "A flag may be written with - for _, and as --flag=VALUE or --flag VALUE."


@dataclasses.dataclass(frozen=True)
class Flag:
    """A flag, or an argument that has its place, as the page shows it."""

    name: str
    """The field's."""
    written: str
    """As it is typed, with the kind of its value."""
    about: str
    """What it does, and its default."""
    in_place: bool
    """Whether it is given by its place rather than by its name."""

    @property
    def entry(self) -> Entry:
        """For the page."""
        return self.written, self.about


def help_of(settings_class: type, prog: str, examples: str = "") -> str:
    """The page of a command whose flags are those of `settings_class`. `examples`: lines to type."""
    flags = {flag.name: flag for flag in flags_of(settings_class)}
    places = [flag for flag in flags.values() if flag.in_place]
    sections = {title: [flags.pop(name).entry for name in names.split()] for title, names in groups_of(settings_class).items()}
    rest = [flag.entry for flag in flags.values()]
    sections["Other flags" if sections else "Flags"] = rest
    usage = " ".join([prog, *(flag.written for flag in places), "[--help] [FLAGS]"])
    return page(usage, inspect.cleandoc(settings_class.__doc__ or ""), sections, examples, NOTE)


def groups_of(settings_class: type) -> dict[str, str]:
    """The table of groups of a settings dataclass; empty where it has none."""
    return getattr(settings_class, "GROUPS", {})


def page(usage: str, about: str, sections: Mapping[str, Sequence[Entry]], examples: str, note: str = "") -> str:
    """A page of help, as wide as the terminal."""
    width = max(LEAST_WIDTH, shutil.get_terminal_size().columns - 1)
    paragraphs = [
        textwrap.fill(" ".join(each.split()), width, break_long_words=False, break_on_hyphens=False) for each in about.split("\n\n")
    ]
    parts = [f"usage: {usage}", *paragraphs]
    for title, entries in sections.items():
        if entries:
            parts.append("\n".join([f"{title}:", *(_lines(written, text, width) for written, text in entries)]))
    if note:
        parts.append(textwrap.fill(note, width))
    if examples:
        parts.append("Examples:\n" + textwrap.indent(examples, "  "))
    return "\n\n".join(parts)


def _lines(written: str, text: str, width: int) -> str:
    """A flag and its text, side by side where there is room."""
    left = LEFT if width > 2 * LEFT else 6
    filled = textwrap.fill(
        text, width, initial_indent=" " * left, subsequent_indent=" " * left, break_long_words=False, break_on_hyphens=False
    )
    filled = filled.replace(KEPT_BLANK, " ")
    flag = f"  {written}"
    return f"{flag}{filled[len(flag) :]}" if len(flag) + 2 <= left else f"{flag}\n{filled}"


def flags_of(settings_class: type) -> list[Flag]:
    """The flags of a settings dataclass, in the order of its fields."""
    texts, hints = docstrings(settings_class), typing.get_type_hints(settings_class, include_extras=True)
    return [_flag(field, hints[field.name], texts.get(field.name, "")) for field in dataclasses.fields(settings_class)]


def _flag(field: "dataclasses.Field[Any]", hint: Any, text: str) -> Flag:
    kind, extras = hint, list[Any]()
    if typing.get_origin(hint) is typing.Annotated:
        kind, *extras = typing.get_args(hint)
    default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
    if "Default:" not in text and "Required." not in text:
        text += " Required." if default is dataclasses.MISSING else f" Default:{KEPT_BLANK}{shown(default)}."
    if tyro.conf.Positional in extras:
        many = typing.get_origin(kind) is list
        return Flag(field.name, f"[{field.name.upper()} ...]" if many else field.name.upper(), text, True)
    names = [*(alias for extra in extras for alias in getattr(extra, "aliases", None) or ()), f"--{field.name}"]
    if kind is bool:
        return Flag(field.name, ", ".join([*names, *([f"--no_{field.name}"] if default else [])]), text, False)
    return Flag(field.name, f"{', '.join(names)} {_value(kind)}", text, False)


def _value(kind: Any) -> str:
    """What stands for a value: the choices, or its kind."""
    if isinstance(kind, types.UnionType):
        kind = next(each for each in typing.get_args(kind) if each is not types.NoneType)
    if typing.get_origin(kind) is Literal:
        return "{" + ",".join(map(str, typing.get_args(kind))) + "}"
    return {int: "INT", float: "FLOAT"}.get(kind, "TEXT")


def shown(default: Any) -> str:
    """A default as one reads it."""
    if isinstance(default, bool):
        return "on" if default else "off"
    if isinstance(default, int):
        return f"{default:,}" if abs(default) >= WITH_COMMAS else str(default)
    if isinstance(default, float):
        return f"{default:g}"
    return str(default) if default else "none"


@functools.cache
def docstrings(settings_class: type) -> dict[str, str]:
    """The text below each field of a dataclass; of one that a subclass declares again, the subclass's where it has one."""
    texts: dict[str, str] = {}
    for each in reversed(settings_class.__mro__):
        if not dataclasses.is_dataclass(each):
            continue
        (body,) = [node.body for node in ast.parse(textwrap.dedent(inspect.getsource(each))).body if isinstance(node, ast.ClassDef)]
        for field, text in itertools.pairwise(body):
            match field, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(doc))):
                    texts[name] = " ".join(doc.split())
    return texts
