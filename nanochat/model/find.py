"""Which finished model is meant."""

import os
import re
from pathlib import Path

from nanochat.common.errors import UserError
from nanochat.common.paths import base_dir


def find_model(stages: tuple[str, ...], model_tag: str = "") -> Path:
    """The newest finished model of one of the stages, of the run `model_tag` when that is given.

    Raises UserError, listing what is there, when there is none.
    """
    if re.search(r"[/*?\[\]]", model_tag):
        raise UserError(f"--model_tag={model_tag}: a run's name has none of / * ? [ ]")
    runs = base_dir() / "runs"
    finished = [path for stage in stages for path in runs.glob(f"{model_tag or '*'}/{stage}/model") if (path / "config.json").is_file()]
    if finished:
        return max(finished, key=lambda path: path.stat().st_mtime_ns)
    wanted = " or ".join(stages) + (f" model of the run {model_tag}" if model_tag else " model")
    tags = sorted({path.parts[-3] for path in runs.glob("*/*/model")})
    known = f"; finished runs: {', '.join(tags)}" if tags else "; train one first: bash run3b.sh --rehearse makes a small one in minutes"
    raise UserError(f"there is no finished {wanted} in {runs}{known}")


def make_newest(model: Path) -> None:
    """Let a model that was just finished be the newest of all runs, also where the clock was set back since another was finished."""
    others = [path.stat().st_mtime_ns for path in (base_dir() / "runs").glob("*/*/model") if path != model]
    status = model.stat()
    if others and status.st_mtime_ns <= max(others):
        os.utime(model, ns=(status.st_atime_ns, max(others) + 1_000_000))
