"""HumanEval's check: the program that a reply means, run against the problem's tests in the sandbox."""

import re
import secrets
from collections.abc import Iterator
from dataclasses import replace

from nanochat.sandbox.run import Outcome, run_python

PYTHON = ("", "py", "python", "python3")  # what a code block in Python may call itself
FUTURE = re.compile(r"^from __future__ import .*$", re.MULTILINE)
TIMEOUT_S = 10.0


def _blocks(text: str) -> Iterator[tuple[str, str]]:
    """The code blocks between fences, each with its language; one that is not closed goes on to the end."""
    language: str | None = None
    lines: list[str] = []
    indent = ""
    for line in [*text.split("\n"), "```"]:
        word = line.strip()
        if language is None and word.startswith("```") and "`" not in word.lstrip("`"):
            language, lines, indent = word.lstrip("`").strip().lower().split(" ")[0], [], line[: line.index("`")]
        elif language is not None:
            lines.append(line.removeprefix(indent))
            if word.endswith("```"):
                lines[-1] = lines[-1].rstrip().removesuffix("```")
                yield language, "\n".join(lines)
                language = None


def extract_program(prompt: str, reply: str, entry_point: str) -> str:
    """The program that a reply means: the whole function, or the body that goes on after the prompt, with or without a code block."""
    define = re.compile(rf"^[ \t]*(?:async[ \t]+)?def[ \t]+{re.escape(entry_point)}\b", re.MULTILINE)
    reply = reply.replace("\r\n", "\n")
    blocks = list(_blocks(reply))
    fallback = next((code for language, code in blocks if language in PYTHON), reply)
    code = next((code for _, code in blocks if define.search(code)), fallback)
    if not define.search(code):
        return prompt + code
    starts = [found.start() for found in define.finditer(prompt)]
    head = prompt[: starts[-1]] if starts else ""  # imports and helpers, which a reply may leave out
    return "\n".join([*FUTURE.findall(code), head, FUTURE.sub("", code)])


def check_program(prompt: str, reply: str, test: str, entry_point: str, *, allow_unsafe: bool = False) -> Outcome:
    """Run the reply's program, then the problem's `check` on it; passed when no assertion fails.

    A reply that leaves early does not pass. But it shares a process with the check: one that goes through its memory (gc, ctypes), or
    gives values that equal everything, can still deceive it.
    Raises SandboxUnavailable where nothing may be run.
    """
    ending = secrets.token_hex(16)
    program = f"{extract_program(prompt, reply, entry_point)}\n\n{test}\n\ncheck({entry_point})\n"
    outcome = run_python(program, timeout_s=TIMEOUT_S, ending=ending, allow_unsafe=allow_unsafe)
    return outcome if outcome.stdout.endswith(ending) or not outcome.passed else replace(outcome, status="failed")
