"""What the documents show: commands, programs, messages, files."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = ("README.md", "DESIGN_3B_7B.md", "CHANGES_SUMMARY.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "ablations/README.md")
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Command:
    """One command of a document, as somebody types it."""

    document: str
    """Where it stands."""
    text: str
    """Without its comment."""

    @property
    def script(self) -> str:
        """The script that it runs, as in base_train; empty where it is no script of this project's."""
        found = re.search(r"-m scripts\.(\w+)", self.text)
        return found[1] if found else ""

    @property
    def flags(self) -> list[str]:
        """What the script is given. Several commands in a line, and pipes, end it."""
        after = re.split(r"-m scripts\.\w+(?: --(?= |$))?", self.text)[-1]
        return shlex.split(re.split(r" (?:&&|\|) ", after)[0])


def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def blocks(document: str, language: str) -> list[str]:
    """What stands in a document between fences of a language."""
    return [found[2] for found in FENCE.finditer(text_of(document)) if found[1] == language]


def commands_in(text: str, document: str) -> list[Command]:
    """The commands of a block in order; a line that ends with a backslash goes on in the next."""
    lines = text.replace("\\\n", " ").splitlines()
    bare = (re.sub(r"\s+#\s.*$", "", line).strip() for line in lines)
    return [Command(document, re.sub(r"\s+", " ", line)) for line in bare if line and not line.startswith("#")]


EVERY = [command for document in DOCUMENTS for text in blocks(document, "bash") for command in commands_in(text, document)]
