"""Sources on the Hugging Face hub: text shards downloaded in parallel, a shard being complete or absent.

All shards come from one revision of the repository, which `source.json` keeps for the next run.
"""

import errno
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from nanochat.common.console import Progress, say, warn
from nanochat.common.errors import UserError
from nanochat.common.files import write_json
from nanochat.common.paths import data_dir
from nanochat.data.sources import Source
from nanochat.data.text_shards import BrokenParquetError, open_parquet, read_record, shard_path

ATTEMPTS = 4
FIRST_WAIT_S = 1.0
REPLY_TIMEOUT_S = 10.0
ERRORS_OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO}

T = TypeVar("T")


class _UnreachableError(Exception):
    """The hub gave no usable answer, however often it was asked."""


def is_there(source: Source, num_shards: int) -> bool:
    """Whether the validation shard and the first `num_shards` train shards lie complete on disk."""
    return not _missing(source, num_shards)


def fetch(source: Source, num_shards: int, num_downloads: int) -> None:
    """Download what is missing of the validation shard and train shards 0 to `num_shards` - 1, `num_downloads` at a time.

    Raises UserError, saying what is there and how to go on, when the hub cannot be reached or refuses.
    """
    directory = data_dir(source.name)
    for left in (directory / ".cache" / "huggingface" / "download").glob("*.incomplete"):  # of a run that was killed
        left.unlink(missing_ok=True)
    try:
        _refuse_offline()
        revision = _pin_revision(source, directory)
        _download_all(source, revision, _missing(source, num_shards), num_downloads)
    except _UnreachableError as error:
        there = num_shards + 1 - len(_missing(source, num_shards))
        raise UserError(
            f"cannot download {source.name} from {_endpoint()} ({error}); {there} of {num_shards + 1} shards are in {directory}. "
            f"The same command goes on with the rest; or use --data python, or --data path:DIR for text of your own"
        ) from error


def _missing(source: Source, num_shards: int) -> list[int]:
    """Indices of the shards that are not there or are broken, validation first."""
    directory = data_dir(source.name)
    return [index for index in (source.val_index, *range(num_shards)) if not _is_complete(shard_path(directory, index))]


def _is_complete(path: Path) -> bool:
    """Whether a shard is there and its footer opens."""
    try:
        with path.open("rb") as file:
            open_parquet(file)
    except (FileNotFoundError, BrokenParquetError):
        return False
    return True


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def _refuse_offline() -> None:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise _UnreachableError("HF_HUB_OFFLINE is set, unset it to download")


def _pin_revision(source: Source, directory: Path) -> str:
    """The commit that all shards come from: the one kept in `source.json` while the hub has it, else the newest."""
    from huggingface_hub.errors import RevisionNotFoundError

    record = read_record(directory)
    kept = record.get("revision", "main")
    try:
        revision = _commit(source, kept)
    except RevisionNotFoundError:
        warn(f"{source.repo} has no revision {kept} any more: going on with the newest")
        revision = _commit(source, "main")
    if record.get("revision") != revision:
        write_json(
            directory / "source.json", {"data": source.data, "repo": source.repo, "revision": revision, "val_index": source.val_index}
        )
    return revision


def _commit(source: Source, revision: str) -> str:
    """The commit that a revision stands for, which also tells whether the hub answers."""
    return str(_patiently(lambda: _metadata(source, source.val_index, revision).commit_hash) or revision)


def _metadata(source: Source, index: int, revision: str) -> Any:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    url = hf_hub_url(source.repo, shard_path(Path(), index).name, repo_type="dataset", revision=revision)
    return get_hf_file_metadata(url, timeout=REPLY_TIMEOUT_S)


def _download_all(source: Source, revision: str, missing: list[int], num_downloads: int) -> None:
    """Download shards with daemon threads, so that an interrupt does not wait for them. Raises the first error of any."""
    from huggingface_hub.utils import disable_progress_bars, logging

    disable_progress_bars()
    logging.set_verbosity_error()
    todo: queue.SimpleQueue[int] = queue.SimpleQueue()
    results: queue.SimpleQueue[int | BaseException] = queue.SimpleQueue()
    for index in missing:
        todo.put(index)
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            try:
                results.put(_download(source, revision, todo.get_nowait()))
            except queue.Empty:
                return
            except BaseException as error:
                results.put(error)
                return

    for _ in range(min(num_downloads, len(missing))):
        threading.Thread(target=work, daemon=True).start()
    mb = 0.0
    with Progress(f"downloading {source.name}", len(missing), "shards") as progress:
        try:
            for _ in missing:
                result = results.get()
                if isinstance(result, BaseException):
                    raise result
                mb += result / 1e6
                progress.advance(1, f"{mb:,.0f} MB")
        finally:
            stop.set()


def _download(source: Source, revision: str, index: int) -> int:
    """Download one shard; its size in bytes. One that arrives broken is deleted and fetched once again."""
    path = shard_path(data_dir(source.name), index)
    for _ in range(2):
        path.unlink(missing_ok=True)
        _patiently(lambda: _download_once(source, revision, index))
        if _is_complete(path):
            return path.stat().st_size
        path.unlink(missing_ok=True)
    raise _UnreachableError(f"{path.name} arrived broken twice")


def _download_once(source: Source, revision: str, index: int) -> None:
    from huggingface_hub import hf_hub_download

    _metadata(source, index, revision)  # fails within seconds where hf_hub_download would try for minutes
    path = shard_path(data_dir(source.name), index)
    hf_hub_download(source.repo, path.name, repo_type="dataset", revision=revision, local_dir=path.parent, etag_timeout=REPLY_TIMEOUT_S)


def _patiently(ask: Callable[[], T]) -> T:
    """The result of `ask`, tried again with growing waits when the network or the hub fails for the moment.

    Raises _UnreachableError when it never succeeds or the hub refuses, RevisionNotFoundError and errors of the disk as they are.
    """
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, RevisionNotFoundError

    wait_s = FIRST_WAIT_S
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return ask()
        except RevisionNotFoundError:
            raise
        except (HTTPError, OSError, RuntimeError) as error:
            status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
            if isinstance(error, OSError) and error.errno in ERRORS_OF_THE_DISK:
                raise
            refused = status is not None and status < 500 and status not in (408, 429)
            if refused or attempt == ATTEMPTS:
                raise _UnreachableError(_reason(error)) from error
            say(f"the hub does not answer ({_reason(error)}); trying again in {wait_s:.0f} s")
            time.sleep(wait_s)
            wait_s *= 2
    raise AssertionError("the last attempt returns or raises")


def _reason(error: Exception) -> str:
    first = str(error).strip().splitlines()
    return f"{type(error).__name__}: {first[0]}"[:160] if first else type(error).__name__
