"""HumanEval's check: the program that a reply means, run against the problem's tests in the sandbox."""

import re
import secrets
from dataclasses import replace

from nanochat.sandbox.run import Outcome, run_python

BLOCK = re.compile(r"```[ \t]*(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)
TIMEOUT_S = 10.0


def extract_program(prompt: str, reply: str, entry_point: str) -> str:
    """The program that a reply means: the whole function, or the body that goes on after the prompt, with or without a code block."""
    found = BLOCK.search(reply)
    code = found[1] if found else reply
    if re.search(rf"^[ \t]*def[ \t]+{re.escape(entry_point)}\b", code, re.MULTILINE):
        head = prompt[: prompt.rindex(f"def {entry_point}")]  # imports and helpers, which a reply may leave out
        return head + "\n" + code
    return prompt + code


def check_program(prompt: str, reply: str, test: str, entry_point: str, *, allow_unsafe: bool = False) -> Outcome:
    """Run the reply's program, then the problem's `check` on it; passed when no assertion fails.

    Raises SandboxUnavailable where nothing may be run.
    """
    done = secrets.token_hex(16)  # or a reply that leaves early, with status 0, would pass
    program = f"{extract_program(prompt, reply, entry_point)}\n\n{test}\n\ncheck({entry_point})\nprint('\\n{done}')\n"
    outcome = run_python(program, timeout_s=TIMEOUT_S, allow_unsafe=allow_unsafe)
    return outcome if outcome.stdout.endswith(f"\n{done}\n") or not outcome.passed else replace(outcome, status="failed")
