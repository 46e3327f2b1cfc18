"""The mirror, where CHECKPOINT_MIRROR names one: whether it takes a file, before there is anything to lose."""

import os
from pathlib import Path

from nanochat.common.errors import UserError
from nanochat.common.paths import base_path
from nanochat.plan.disk import LATER_STAGES
from nanochat.preflight.check import GREEN, RED, YELLOW, Finding
from nanochat.preflight.settings import PreflightSettings
from nanochat.train.checkpoint_directory import standing
from nanochat.train.mirror import Mirror
from nanochat.train.settings import mirror_address


def check(settings: PreflightSettings) -> list[Finding]:
    """On the first node, which is the one that copies: a small file is written there, read and removed.

    Red where a stage is to begin, which does not without its mirror; one that goes on only warns.
    """
    url = mirror_address("")
    if not url or os.environ.get("RANK", "0") != "0":
        return []
    run = base_path() / "runs" / f"d{settings.depth}"
    try:
        Mirror(url, run).probe()
    except UserError as error:
        advice = "mend the address or its credentials, or unset CHECKPOINT_MIRROR: this node's disk is then the only one"
        return [Finding("mirror", YELLOW if _goes_on(run) else RED, str(error), advice)]
    return [Finding("mirror", GREEN, f"{url} takes files")]


def _goes_on(run: Path) -> bool:
    """Whether the stage that comes next has a checkpoint here."""
    stages = (run / name for name in ("base", *LATER_STAGES))
    following = next((stage for stage in stages if not (stage / "model").is_dir()), None)
    return following is None or bool(standing(following / "checkpoints"))
