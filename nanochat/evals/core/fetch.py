"""Where a bundle comes from: the one that is fetched once, a directory, a zip, or the small one of this project."""

import os
from pathlib import Path

from nanochat.common.archives import unzip
from nanochat.common.checksums import read_checksums, write_checksums, wrong_files
from nanochat.common.console import say, warn
from nanochat.common.download import DownloadError, fetch
from nanochat.common.errors import UserError
from nanochat.common.files import atomic_path, remove, sha256_file
from nanochat.common.locks import locked
from nanochat.common.paths import base_dir, named_path
from nanochat.evals.core.bundle import CORE_FILE, SMALL, open_bundle

URL = "https://karpathy-public.s3.us-west-2.amazonaws.com/eval_bundle.zip"
MAX_BYTES, MAX_MEMBERS = 4_000_000_000, 10_000  # unpacked


def bundle_directory(bundle: str) -> Path:
    """The directory of the bundle that `--bundle` names: a directory, a zip, `small`, or by default the one that is fetched once.

    What is unpacked or fetched is read wholly before it takes its place. Raises UserError where there is none.
    """
    if bundle == "small":
        return SMALL
    if bundle:
        path = named_path(bundle)
        if path.is_dir():
            return _inner(path)
        if not path.is_file():
            raise UserError(f"--bundle={bundle}: there is no such directory or zip (`small` is the one of this project)")
        place = base_dir() / "eval_bundles" / f"{path.stem}-{path.stat().st_size}-{path.stat().st_mtime_ns}"
        if not place.exists():
            _unpack(path, place)
        return _inner(place)
    place = base_dir() / "eval_bundle"
    if _damage(place):
        _get(place)
    return _inner(place)


def _damage(place: Path) -> str:
    """What keeps the bundle there from being used, in a few words; empty where it is as it came."""
    if not place.exists():
        return "it is not there"
    return next((f"{name}: {reason}" for name, reason in wrong_files(place, read_checksums(place)).items()), "")


def _get(place: Path) -> None:
    """Fetch and unpack the bundle, unless another process has done so meanwhile; a damaged one stays until the new one is whole."""
    archive = base_dir() / ".eval_bundle.zip"
    with locked(base_dir() / ".eval_bundle.lock", waiting="another process is fetching the CORE bundle; waiting for it to finish"):
        if not (damage := _damage(place)):
            return
        if place.exists():
            warn(f"{place}: {damage}; the bundle is fetched again")
        try:
            _download(os.environ.get("NANOCHAT_BUNDLE_URL", URL), archive)
            _unpack(archive, place)
        finally:
            remove(archive)


def _inner(place: Path) -> Path:
    """The directory that holds core.yaml: the place itself, or the only directory in it."""
    if (place / CORE_FILE).exists():
        return place
    inside = [path.parent for path in place.glob(f"*/{CORE_FILE}")]
    if not inside:
        raise UserError(f"{place} is no bundle: {CORE_FILE} is missing")
    return inside[0]


def _unpack(archive: Path, place: Path) -> None:
    """Unpack and check; the place is complete or absent."""
    with atomic_path(place) as aside:
        unzip(archive, aside, MAX_BYTES, MAX_MEMBERS)
        open_bundle(_inner(aside))
        write_checksums(aside, {str(path.relative_to(aside)): sha256_file(path) for path in aside.rglob("*") if path.is_file()})


def _download(url: str, path: Path) -> None:
    say(f"fetching {url}")
    try:
        fetch(url, path)
    except DownloadError as error:
        advice = "give a copy of the CORE bundle by --bundle DIR_OR_ZIP, or --bundle small for the little one of this project"
        raise UserError(f"{error}; {advice}") from None
