"""The mirror, where CHECKPOINT_MIRROR names one: whether it takes a file, before there is anything to lose."""

import os

from nanochat.common.errors import UserError
from nanochat.common.paths import base_path
from nanochat.preflight.check import GREEN, RED, Finding
from nanochat.preflight.settings import PreflightSettings
from nanochat.train.mirror import Mirror, one_line
from nanochat.train.settings import mirror_address

TRIED = b"nanochat was here to try whether it may write\n"


def check(settings: PreflightSettings) -> list[Finding]:
    """On the first node, which is the one that copies: a small file is written there, read and removed."""
    url = mirror_address("")
    if not url or os.environ.get("RANK", "0") != "0":
        return []
    advice = "mend the address or its credentials, or unset CHECKPOINT_MIRROR: this node's disk is then the only one"
    try:
        there = Mirror(url, base_path() / "runs" / f"d{settings.depth}")
        path = f"{there.root}/preflight-{os.getpid()}"
        there.fs.makedirs(there.root, exist_ok=True)
        there.fs.pipe_file(path, TRIED)
        read = there.fs.cat_file(path)
        there.fs.rm_file(path)
    except UserError as error:
        return [Finding("mirror", RED, str(error), advice)]
    except Exception as error:  # of the address's own library
        return [Finding("mirror", RED, f"{url} fails: {one_line(error)}", advice)]
    if read != TRIED:
        return [Finding("mirror", RED, f"{url} gives back other bytes than it took", advice)]
    return [Finding("mirror", GREEN, f"{url} takes files")]
