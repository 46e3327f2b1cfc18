"""Prose out of Python files: their docstrings, read without importing anything. Runs in worker processes."""

import ast
import dataclasses
import gc
import hashlib
import inspect
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

MAX_FILE_BYTES = 1_000_000
MIN_DOCSTRING_CHARS = 80
THIN_SHARE = 0.15
MIN_LINE_CHARS = 30
TRIPLE_QUOTED = re.compile(r'^[ \t]*[rRuU]?("""|\'\'\')(.*?)\1', re.MULTILINE | re.DOTALL)


@dataclasses.dataclass(frozen=True)
class PythonFile:
    """What a Python file holds: its docstrings, in the order of the source, and the source itself where it was asked for."""

    docstrings: tuple[str, ...]
    source: str = ""


def read_prose(path: Path) -> PythonFile | None:
    """The docstrings of a file; None when it cannot be read or parsed, or has next to none."""
    source = _read(path)
    # Parsing costs nearly all of the time: a look for anything like a docstring saves it for a third of the files.
    if source is None or sum(len(match[2]) for match in TRIPLE_QUOTED.finditer(source)) < max(
        MIN_DOCSTRING_CHARS, THIN_SHARE * len(source)
    ):
        return None
    docstrings = _docstrings(source)
    return PythonFile(docstrings) if docstrings else None


def read_source(path: Path) -> PythonFile | None:
    """A file's source and its docstrings; None when it cannot be read or parsed, or is empty."""
    source = _read(path)
    if source is None or not source.strip():
        return None
    docstrings = _docstrings(source)
    return None if docstrings is None else PythonFile(docstrings, source)


def text_hash(text: str) -> bytes:
    """Hash of a text that does not see case and white space, so that copies indented or wrapped otherwise count as copies."""
    return hashlib.blake2b(" ".join(text.split()).lower().encode(), digest_size=12).digest()


class Unseen:
    """Tells new docstrings from copies and near copies: inherited and templated docstrings, of which packages are full."""

    def __init__(self) -> None:
        self._texts: set[bytes] = set()
        self._lines: set[str] = set()

    def take(self, text: str) -> bool:
        """Whether a text is new: no copy, and without a line of any length that was seen before. A new one counts as seen."""
        digest = text_hash(text)
        if digest in self._texts:
            return False
        self._texts.add(digest)
        lines = [line for line in map(str.strip, text.splitlines()) if len(line) >= MIN_LINE_CHARS]
        if not self._lines.isdisjoint(lines):
            return False
        self._lines.update(lines)
        return True


def split_lines(text: str, max_bytes: int) -> Iterator[str]:
    """Pieces of a text of at most `max_bytes` of UTF-8, cut between lines; a single longer line stays whole."""
    if len(text.encode()) <= max_bytes:
        yield text
        return
    lines: list[str] = []
    size = 0
    for line in text.splitlines(keepends=True):
        line_bytes = len(line.encode())
        if lines and size + line_bytes > max_bytes:
            yield "".join(lines)
            lines, size = [], 0
        lines.append(line)
        size += line_bytes
    yield "".join(lines)


def _read(path: Path) -> str | None:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            return None
        return path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError):
        return None


def _docstrings(source: str) -> tuple[str, ...] | None:
    """Docstrings of the module, its classes and functions that are long enough to be prose; None when it does not parse."""
    collected = gc.isenabled()
    gc.disable()  # a syntax tree has no cycles, and collecting amid its making doubles the time
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the parsed file: invalid escapes and the like
            raw = list(_raw_docstrings(ast.parse(source)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    finally:
        if collected:
            gc.enable()
    cleaned = map(inspect.cleandoc, raw)
    return tuple(text for text in cleaned if len(text) >= MIN_DOCSTRING_CHARS and _encodable(text))


def _raw_docstrings(node: ast.AST) -> Iterator[str]:
    """Depth first through statements only: expressions hold no definitions."""
    body = getattr(node, "body", [])
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and body:
        first = body[0]
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            yield first.value.value
    for part in ("body", "orelse", "handlers", "finalbody"):
        children = getattr(node, part, [])
        for child in children if isinstance(children, list) else []:
            if isinstance(child, ast.stmt | ast.ExceptHandler):
                yield from _raw_docstrings(child)


def _encodable(text: str) -> bool:
    """Whether UTF-8 can hold it: an escape in a docstring can spell half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
