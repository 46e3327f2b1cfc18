"""What a model directory was written as: digests of its files, and one of all its weights, by which evaluations name what they measured."""

import hashlib
import os
from pathlib import Path

from nanochat.common.checksums import CHECKSUMS_FILE, read_checksums, write_checksums, wrong_files
from nanochat.common.errors import UserError
from nanochat.common.files import sha256_file

OPEN_TO_CHANGE = {"README.md", "generation_config.json", "chat_template.jinja", CHECKSUMS_FILE}
"""Files that a person may edit, which makes them not damaged."""


def seal_model(directory: Path) -> None:
    """Write `checksums.json` for a model directory that is finished."""
    files = [path for path in directory.iterdir() if path.is_file() and path.name not in OPEN_TO_CHANGE]
    checksums = {path.name: sha256_file(path) for path in files}
    write_checksums(directory, checksums, weights=_of_weights(checksums))


def weights_digest(directory: Path) -> str:
    """One digest of all weights of a model directory; empty where it has no checksums."""
    return _of_weights(read_checksums(directory))


def digest_of_finished(directory: Path) -> str:
    """As weights_digest, of a run's own finished model; one that was finished before there were checksums is sealed as it is now."""
    if not (directory / CHECKSUMS_FILE).exists():
        status = directory.stat()
        seal_model(directory)
        os.utime(directory, ns=(status.st_atime_ns, status.st_mtime_ns))  # by which the newest model is known
    return weights_digest(directory)


def wrong_in_model(directory: Path) -> str:
    """Which file of a model is not as it was written, and why; empty where all are. Without `checksums.json` nothing is known."""
    wrong = wrong_files(directory, read_checksums(directory))
    return next((f"{directory / name} is missing or damaged ({reason})" for name, reason in wrong.items()), "")


def verify_model(directory: Path) -> None:
    """Raise UserError, with what to do, when a file of a model is not as it was written."""
    if wrong := wrong_in_model(directory):
        is_mended = directory.name == "model" and any((directory.parent / "checkpoints").glob("step_*"))
        remedy = "give its training command again, which mends it" if is_mended else "copy or fetch the model again"
        raise UserError(f"{wrong}: {remedy}")


def _of_weights(checksums: dict[str, str]) -> str:
    weights = [f"{name} {digest}\n" for name, digest in sorted(checksums.items()) if name.endswith(".safetensors")]
    return hashlib.sha256("".join(weights).encode()).hexdigest() if weights else ""
