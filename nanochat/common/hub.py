"""Files of the Hugging Face hub: where they are, what the hub publishes of them, and whether what its client keeps is that."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from nanochat.common.checksums import wrong_files
from nanochat.common.download import DIGEST, DownloadError, Published, ask


@dataclasses.dataclass(frozen=True)
class HubFile:
    """A file of a repository at one commit."""

    url: str
    commit: str
    """what the revision stands for; empty where the hub does not say"""
    published: Published


def endpoint() -> str:
    """`HF_ENDPOINT`, by default https://huggingface.co."""
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids to ask the hub."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def headers() -> dict[str, str]:
    """What the hub wants to know of who asks: HF_TOKEN, or what `hf auth login` has kept, and the client."""
    from huggingface_hub.utils import build_hf_headers

    return dict(build_hf_headers(library_name="nanochat"))


def look_up(repo: str, name: str, revision: str, repo_type: str = "dataset") -> HubFile:
    """What the hub publishes of a file: its size and its digest, SHA-256 of large files and git's SHA-1 of small ones.

    Raises DownloadError, with the hub's word in `code`, when it refuses or does not answer, or something else does.
    """
    from huggingface_hub import hf_hub_url

    url = hf_hub_url(repo, name, repo_type=repo_type, revision=revision)
    try:
        reply = ask("HEAD", url, {**headers(), "Accept-Encoding": "identity"})
    except DownloadError as error:
        if error.status in (401, 403):
            advice = f"accept the terms on the page of {repo}, and log in with `hf auth login` or set HF_TOKEN"
            raise DownloadError(f"{error}; {advice}", error.status, error.code) from None
        raise
    etag = (reply.headers.get("X-Linked-Etag") or reply.headers.get("ETag", "")).removeprefix("W/").strip('"')
    size = reply.headers.get("X-Linked-Size") or ("" if reply.is_redirect else reply.headers.get("Content-Length", ""))
    published = Published(int(size) if size.isdigit() else None, etag if DIGEST.fullmatch(etag) else "")
    commit = reply.headers.get("X-Repo-Commit", "")
    if not commit and not published.digest:
        raise DownloadError(
            f"what answers at {url} is neither the hub nor a mirror of it: it names neither a commit nor a digest; "
            "does the network want a login, or is HF_ENDPOINT wrong?"
        )
    return HubFile(url, commit, published)


def wrong_in_cache(files: Iterable[Path]) -> list[Path]:
    """Those of the hub client's cached files whose bytes are not those that the hub published.

    The client names what it keeps by its digest and links to it; a file that is no such link is not judged.
    """
    found = []
    for path in files:
        kept = path.resolve()
        is_named_by_digest = kept.parent.name == "blobs" and DIGEST.fullmatch(kept.name)
        if is_named_by_digest and wrong_files(kept.parent, {kept.name: kept.name}):
            found.append(path)
    return found


def cached_files(repo: str, repo_type: str = "dataset") -> list[Path]:
    """The files of a repository, of every commit, that the hub client keeps."""
    from huggingface_hub import constants

    place = Path(constants.HF_HUB_CACHE) / f"{repo_type}s--{repo.replace('/', '--')}" / "snapshots"
    return [path for path in place.rglob("*") if path.is_file()]


def forget(path: Path) -> None:
    """Remove a file from the hub client's cache, so that it fetches it again."""
    path.resolve().unlink(missing_ok=True)
    path.unlink(missing_ok=True)
