"""What the documents say of the program is so: files, flags, variables, messages, commands."""

import ast
import re
from pathlib import Path

import pytest
import yaml

from nanochat.common.cli import parse
from tests.docs.blocks import DOCUMENTS, EVERY, ROOT, Command, text_of
from tests.test_help import settings_of

SHELL = [path.read_text(encoding="utf-8") for path in ROOT.glob("*.sh")]
PYTHON = [path for room in ("nanochat", "scripts") for path in sorted((ROOT / room).rglob("*.py"))]
UNSAID = "\0"  # what a message has in the place of a value


@pytest.mark.parametrize("command", [one for one in EVERY if one.script and one.script != "launch"], ids=lambda one: one.text)
def test_every_command_is_one_that_its_script_takes(command: Command) -> None:
    parse(settings_of(command.script), command.flags)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_that_are_named_are_there(document: str) -> None:
    text = re.sub(r"^```.*?^```$", "", text_of(document), flags=re.MULTILINE | re.DOTALL)
    named = re.findall(r"`((?:nanochat|scripts|tests|docs|ablations)/[\w./*]*|[\w.]+\.(?:sh|toml|cff|txt))`", text)
    missing = [name for name in named if not list(ROOT.glob(name.rstrip("/"))) and name not in ("me.toml", "ablations/NAME/")]
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    missing += [link for link in links if link and not ((ROOT / document).parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_to_headings(document: str) -> None:
    for file, anchor in re.findall(r"\]\(([\w./]*)#([\w-]+)\)", text_of(document)):
        headings = re.findall(r"^#+ (.*)$", text_of(file or document), re.MULTILINE)
        assert anchor in [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_flags_that_are_named_exist(document: str) -> None:
    everywhere = "".join(path.read_text(encoding="utf-8") for path in PYTHON) + "".join(SHELL)
    flags = set(re.findall(r"`--([\w]+)", text_of(document))) - {"slow", "rehearse"}
    assert [flag for flag in sorted(flags) if not re.search(rf"\b{flag}\b", everywhere) and flag not in ("target_", "tests")] == []


def test_variables_that_are_listed_are_read() -> None:
    table = text_of("README.md").split("| variable | meaning | default |")[1].split("\n\n")[0]
    names = re.findall(r"`([A-Z][A-Z_]+)`", table)
    read = "".join(SHELL) + "".join(path.read_text(encoding="utf-8") for path in PYTHON)
    of_others = {"HF_HOME"}
    assert len(names) > 15
    assert [name for name in names if name not in read and name.removeprefix("NANOCHAT_DOWNLOAD_").lower() not in read] == sorted(of_others)


def templates() -> list[str]:
    """Every string that the program may print, with what is filled in left out."""
    found = []
    for path in PYTHON:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(str(part.value) if isinstance(part, ast.Constant) else UNSAID for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    said = re.findall(r'"((?:[^"\\]|\\.)*)"', "\n".join(SHELL))
    return found + [re.sub(r"\$\{[^}]*\}|\$\(\(.*?\)\)|\$\w+", UNSAID, text) for text in said]


def test_messages_are_those_that_are_printed() -> None:
    table = text_of("README.md").split("| symptom | what is printed | what to do |")[1].split("\n\n")[0]
    messages = [re.findall(r"`([^`]+)`", row.split("|")[2])[0] for row in table.splitlines()[2:]]
    assert len(messages) > 20
    known = templates()
    for message in messages:
        parts = [part for part in message.removeprefix("error: ").split("…") if part.strip()]
        pattern = re.compile(".*".join(map(re.escape, parts)), re.DOTALL)
        assert any(pattern.search(text) for text in known), message


@pytest.mark.parametrize("script", sorted(path.stem for path in (ROOT / "scripts").glob("*.py") if path.stem != "__init__"))
def test_every_script_is_shown_somewhere(script: str) -> None:
    assert any(command.script == script for command in EVERY) or f"scripts.{script}`" in text_of("README.md")


def test_the_citation_is_one() -> None:
    from nanochat import __version__

    citation = yaml.safe_load(text_of("CITATION.cff"))
    assert {"cff-version", "title", "message", "authors", "version", "license"} <= set(citation)
    assert citation["version"] == __version__
    assert f"## {__version__}" in text_of("CHANGELOG.md")
    assert "MIT License" in text_of("LICENSE")


def public(path: Path) -> list[tuple[str, str | None]]:
    """Public modules, classes, functions and methods of a file, with their docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: list[tuple[str, str | None]] = [(path.stem, ast.get_docstring(tree))]

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
                found.append((f"{prefix}{node.name}", ast.get_docstring(node)))
                if isinstance(node, ast.ClassDef):
                    visit(node.body, f"{prefix}{node.name}.")

    visit(tree.body, "")
    return found


@pytest.mark.parametrize("path", [path for path in PYTHON if path.name != "__init__.py"], ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_public_is_documented(path: Path) -> None:
    assert [name for name, text in public(path) if not text or text.rstrip(".").replace(" ", "_").lower() == name.lower()] == []


def raised_by(function: ast.FunctionDef) -> set[str]:
    """Names of what a function raises of its own accord."""
    calls = [node.exc.func for node in ast.walk(function) if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)]
    return {call.id for call in calls if isinstance(call, ast.Name)}


def test_what_a_public_function_raises_is_documented() -> None:
    unsaid = []
    for path in PYTHON:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.FunctionDef) or node.name.startswith("_") or "UserError" not in raised_by(node):
                continue
            if "raise" not in (ast.get_docstring(node) or "").lower():
                unsaid.append(f"{path.relative_to(ROOT)}: {node.name}")
    assert unsaid == []
