"""A whole run and its mirror: fetch what is there, or give it what is here."""

from dataclasses import dataclass

from nanochat.common.console import say
from nanochat.common.errors import UserError
from nanochat.common.paths import run_dir
from nanochat.train.mirror import Mirror, one_line
from nanochat.train.run_directory import STAGES, StageDirectory
from nanochat.train.settings import mirror_address


@dataclass(frozen=True)
class MirrorSettings:
    """Give a run's mirror the models and the small files that it lacks; or fetch all that it has and that is not here."""

    model_tag: str
    """Name of the run's directory, as in d38."""
    checkpoint_mirror: str = ""
    """Address of the mirror: s3://…, gs://…, hf://buckets/…, a path. Default: the environment's CHECKPOINT_MIRROR."""
    fetch: bool = False
    """Fetch, instead of giving: models of finished stages, the last checkpoint of one that is not."""


def mirror(settings: MirrorSettings) -> None:
    """Do what was asked for. Raises UserError where the address fails."""
    url = mirror_address(settings.checkpoint_mirror)
    if not url:
        raise UserError("no mirror is named: give --checkpoint_mirror, or set CHECKPOINT_MIRROR")
    run = run_dir(settings.model_tag)
    if not settings.fetch and not run.is_dir():
        raise UserError(f"there is no run {run}")
    there = Mirror(url, run)
    try:
        if not settings.fetch:
            there.put_models()
            say(f"{url} has the models of {settings.model_tag}")
            return
        for name in sorted(there.stages(), key=lambda name: STAGES.index(name) if name in STAGES else -1):  # the last one is the newest
            stage = StageDirectory(settings.model_tag, name)
            with stage.locked():
                there.fetch(stage)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"the mirror {url} fails ({one_line(error)})") from None
