"""Sources on the Hugging Face hub: text shards downloaded in parallel, a shard being complete or absent.

All shards come from one revision of the repository, which `source.json` keeps for the next run.
"""

import queue
import threading
from pathlib import Path

from nanochat.common import hub
from nanochat.common.checksums import CHECKSUMS_FILE, read_checksums, remember, write_checksums, wrong_files
from nanochat.common.console import Progress, warn
from nanochat.common.download import DownloadError, fetch
from nanochat.common.errors import UserError
from nanochat.common.files import remove, remove_leftovers, sha256_file, write_json
from nanochat.common.paths import data_dir
from nanochat.data.sources import Source
from nanochat.data.text_shards import BrokenParquetError, missing_shards, open_parquet, read_record, shard_path

_checksums_lock = threading.Lock()


def is_there(source: Source, num_shards: int) -> bool:
    """Whether the validation shard and the first `num_shards` train shards lie complete on disk."""
    return not _missing(source, num_shards)


def get(source: Source, num_shards: int, num_downloads: int) -> None:
    """Download what is missing of the validation shard and train shards 0 to `num_shards` - 1, `num_downloads` at a time.

    Raises UserError, saying what is there and how to go on, when the hub cannot be reached or refuses.
    """
    directory = data_dir(source.name)
    remove_leftovers(directory)
    _remove_begun(directory, {shard_path(directory, index).name for index in (source.val_index, *range(num_shards))})
    try:
        if hub.is_offline():
            raise DownloadError("HF_HUB_OFFLINE is set, unset it to download")
        revision = _pin_revision(source, directory)
        _download_all(source, revision, _missing(source, num_shards, say_why=True), num_downloads)
    except DownloadError as error:
        there = num_shards + 1 - len(_missing(source, num_shards))
        raise UserError(
            f"cannot download {source.name} from {hub.endpoint()} ({error}); {there} of {num_shards + 1} shards are in {directory}. "
            f"The same command goes on with the rest; or use --data python, or --data path:DIR for text of your own"
        ) from error


def _remove_begun(directory: Path, wanted: set[str]) -> None:
    """Remove what was downloaded in part of shards that are not wanted any more."""
    for begun in directory.glob(".*.part"):
        if begun.name[1:].rsplit(".", 2)[0] not in wanted:
            remove(begun)


def _missing(source: Source, num_shards: int, say_why: bool = False) -> list[int]:
    """Indices of the shards that are not there or are broken, validation first."""
    directory = data_dir(source.name)
    wanted = [source.val_index, *range(num_shards)]
    missing = set(missing_shards(directory, wanted, say_why))
    return [index for index in wanted if index in missing or not _is_complete(shard_path(directory, index))]


def _is_complete(path: Path) -> bool:
    """Whether a shard is there and its footer opens."""
    try:
        return not _wrong(path)
    except FileNotFoundError:
        return False


def _wrong(path: Path) -> str:
    """What is wrong with the footer of a shard; empty where it opens."""
    try:
        with path.open("rb") as file:
            open_parquet(file)
    except BrokenParquetError as error:
        return str(error)
    return ""


def _pin_revision(source: Source, directory: Path) -> str:
    """The commit that all shards come from: the one kept in `source.json` while the hub has it, else the newest."""
    record = read_record(directory)
    kept = str(record.get("revision", "main"))
    try:
        revision = _commit(source, kept)
    except DownloadError as error:
        if error.code != "RevisionNotFound":
            raise
        warn(f"{source.repo} has no revision {kept} any more: going on with the newest")
        revision = _commit(source, "main")
    if record.get("revision") != revision:
        remove(directory / CHECKSUMS_FILE)  # so that every shard is held against this revision's; those that are the very same stay
        write_json(
            directory / "source.json", {"data": source.data, "repo": source.repo, "revision": revision, "val_index": source.val_index}
        )
    return revision


def _commit(source: Source, revision: str) -> str:
    """The commit that a revision stands for, which also tells whether the hub answers."""
    return hub.look_up(source.repo, shard_path(Path(), source.val_index).name, revision).commit or revision


def _download_all(source: Source, revision: str, missing: list[int], num_downloads: int) -> None:
    """Download shards with daemon threads, so that an interrupt does not wait for them. Raises the first error of any."""
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
    """Download one shard, unless the very one is there, and keep the digest that the hub publishes of it; its size in bytes."""
    path = shard_path(data_dir(source.name), index)
    file = hub.look_up(source.repo, path.name, revision)
    digest = file.published.digest
    if digest:
        _keep_checksum(path, digest)  # first: a shard that stands has one
        if path.exists() and not wrong_files(path.parent, {path.name: digest}):
            return path.stat().st_size
    size = fetch(file.url, path, file.published, hub.headers(), _wrong)
    if not digest:
        _keep_checksum(path, digest := sha256_file(path))
    with _checksums_lock:
        remember(path, digest)
    return size


def _keep_checksum(path: Path, digest: str) -> None:
    with _checksums_lock:
        write_checksums(path.parent, {**read_checksums(path.parent), path.name: digest})
