"""Where text comes from: what `--data` may name, and the short name of its directory."""

import dataclasses
import hashlib
import re
from pathlib import Path

from nanochat.common.errors import UserError
from nanochat.common.paths import named_path

KNOWN = "python, climbmix, fineweb-edu or path:DIR (a directory of your own .txt, .md, .jsonl[.gz|.zst], .parquet)"


@dataclasses.dataclass(frozen=True)
class Source:
    """One source of text."""

    data: str
    """as given to --data"""
    name: str
    """short name, of its directories"""
    licence: str
    """licence of the text, empty where it is not known"""
    default_shards: int
    """train shards made or fetched when no number is asked for; -1: all that there are"""
    repo: str = ""
    """dataset repository on the hub"""
    val_index: int = -1
    """index of the validation shard, the last of the source; -1: known only when the shards are made"""
    directory: Path | None = None
    """directory (or single file) of the user's own text"""

    @property
    def max_shards(self) -> int:
        """How many train shards there are at most; -1 when that depends on the text."""
        return self.val_index


PYTHON = Source("python", "python", "", default_shards=5, val_index=31)
CLIMBMIX = Source("climbmix", "climbmix", "CC BY-NC 4.0", default_shards=8, repo="karpathy/climbmix-400b-shuffle", val_index=6542)
FINEWEB_EDU = Source("fineweb-edu", "fineweb-edu", "ODC-By", default_shards=8, repo="karpathy/fineweb-edu-100b-shuffle", val_index=1822)
NAMED = {source.data: source for source in (PYTHON, CLIMBMIX, FINEWEB_EDU)}


def source_of(data: str) -> Source:
    """The source that `--data` names. Raises UserError when there is no such source; whether a directory exists is not looked at."""
    if data in NAMED:
        return NAMED[data]
    if not data.startswith("path:"):
        raise UserError(f"unknown --data {data!r}: it can be {KNOWN}")
    given = data.removeprefix("path:")
    if not given:
        raise UserError("--data path: names no directory; write --data path:DIR")
    directory = named_path(given).absolute()
    digest = hashlib.sha256(str(directory).encode("utf-8", "surrogateescape")).hexdigest()[:8]
    label = re.sub(r"[^A-Za-z0-9_.-]+", "-", directory.name) or "root"
    return Source(data, f"path-{label}-{digest}", "", default_shards=-1, directory=directory)
