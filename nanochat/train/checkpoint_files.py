"""One checkpoint on disk: every rank writes and reads its own part (torch.distributed.checkpoint).

A failing disk is kept as `error`, not raised: torch hands exceptions on by pickling their frames, which Python 3.13 forbids and
torch 2.11 does not know, so that the other ranks would wait for ever.
"""

import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed._state_dict_utils import _copy_state_dict, _create_cpu_state_dict
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.staging import BlockingAsyncStager
from torch.distributed.tensor import DTensor
from torch.futures import Future

from nanochat.common.checksums import CHECKSUMS_FILE, write_checksums
from nanochat.common.errors import UserError
from nanochat.common.files import fsync_path, publish, read_json, remove, sha256_file, write_json
from nanochat.train.safe_metadata import load_metadata

STATE_FILE = "state.json"
METADATA_FILE = ".metadata"


@dataclass(frozen=True)
class Checksums:
    """SHA-256 of the files that a rank wrote, by name."""

    of: dict[str, str]


def _done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


def _portable(error: BaseException, path: Path) -> Exception:
    """What can be sent to other ranks of an error at `path`: the OSError or UserError in its chain, else its traceback as text."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, UserError):
            return link
        if isinstance(link, OSError) and link.errno is not None:
            return OSError(link.errno, link.strerror, str(link.filename or path))
        link = link.__cause__ or link.__context__
    return RuntimeError("".join(traceback.format_exception(error)))


def checksums_of(path: Path) -> dict[str, str]:
    """SHA-256 of every file of a checkpoint but this list itself. Raises OSError, and ValueError when it is not a checkpoint's."""
    try:
        found = read_json(path / CHECKSUMS_FILE)
        found = dict(found.get("sha256", found))  # older checkpoints have nothing around them
    except (ValueError, TypeError, AttributeError):
        found = {}
    if {STATE_FILE, METADATA_FILE} - found.keys():
        raise ValueError(f"{CHECKSUMS_FILE} is not a checkpoint's")
    return found


def wrong_file(path: Path, checksums: dict[str, str]) -> str:
    """What is wrong with the first of these files of a checkpoint that is not as it was written; empty where all are. Raises OSError."""
    for name, digest in sorted(checksums.items()):
        try:
            is_right = sha256_file(path / name) == digest
        except FileNotFoundError:
            return f"{name} is missing"
        if not is_right:
            return f"the checksum of {name} is not the one it was written with"
    return ""


class Staging(BlockingAsyncStager):
    """The copy on the CPU that a save is written from. Its memory is kept from save to save, pinned where GPUs copy into it: to get that
    memory takes many times as long as to copy."""

    def __init__(self, tensors: dict[str, Tensor]):
        """Get the memory for a copy of these: pinned at once (plan.memory says how much that takes), other memory in the background."""
        super().__init__()
        self._copy = _create_cpu_state_dict(tensors, pin_memory=torch.cuda.is_available())
        self._ready = threading.Thread(target=self._touch, daemon=True)
        self._ready.start()

    def _touch(self) -> None:
        """Write to all of it once: until then the system has only promised it."""
        for tensor in self._copy.values():
            (tensor.to_local() if isinstance(tensor, DTensor) else tensor).zero_()

    def stage(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """The copy; training may change the tensors when this returns."""
        self._ready.join()
        return _copy_state_dict(state_dict, self._copy)


class StepWriter(FileSystemWriter):
    """Writes a checkpoint aside; when the parts of all ranks are on disk the first rank gives it its name."""

    def __init__(self, path: Path, state: dict[str, Any], published: Callable[[], None]):
        """path: the checkpoint; state: what goes into its state.json; published: called on the first rank when it stands."""
        # Flushed here: torch's own fsync comes before its last flush. Nothing is copied ahead: the tensors are on the CPU by then.
        super().__init__(path.with_name(f".{path.name}.tmp"), sync_files=False, per_thread_copy_ahead=0)
        self.aside, self.destination, self.state, self.published = Path(self.path), path, state, published
        self.error: Exception | None = None

    def prepare_local_plan(self, plan: Any) -> Any:
        """Nothing: directories are the first rank's to make."""
        return plan

    def prepare_global_plan(self, plans: list[Any]) -> list[Any]:
        """On the first rank, before any rank writes: an empty directory aside."""
        try:
            remove(self.aside)
            self.aside.mkdir(parents=True)
        except OSError as error:
            self.error = _portable(error, self.aside)
        return super().prepare_global_plan(plans)

    def write_data(self, plan: Any, planner: Any) -> Future[Any]:
        """Write and flush this rank's part; its result is where what was written lies and its checksums, or the error."""
        try:
            if not self.aside.is_dir():
                raise UserError(
                    f"{self.aside}, which the first rank has made, is not there for every rank: "
                    "NANOCHAT_BASE_DIR must be on a disk that all nodes share"
                )
            results = super().write_data(plan, planner).value()
            names = {result.storage_data.relative_path for result in results}
            for name in names:
                fsync_path(self.aside / name)
            return _done([*results, Checksums({name: sha256_file(self.aside / name) for name in names})])
        except Exception as error:
            self.error = self.error or _portable(error, self.aside)
            return _done([self.error])

    def finish(self, metadata: Metadata, results: list[list[Any]]) -> None:
        """On the first rank, when all have written: the checkpoint takes its name, or nothing is left of it."""
        try:
            checksums: dict[str, str] = {}
            for each in (each for result in results for each in result):
                if isinstance(each, Exception):
                    raise each
                if isinstance(each, Checksums):
                    checksums |= each.of
            super().finish(metadata, [[each for each in result if not isinstance(each, Checksums)] for result in results])
            load_metadata(self.aside)  # a torch that writes more than is read here is found out now, not when a run is to go on
            write_json(self.aside / STATE_FILE, self.state)
            checksums |= {name: sha256_file(self.aside / name) for name in (STATE_FILE, METADATA_FILE)}
            write_checksums(self.aside, checksums)
            publish(self.aside, self.destination)
            self.published()
        except Exception as error:
            self.error = _portable(error, self.destination)
            remove(self.aside)


class StepReader(FileSystemReader):
    """Reads a checkpoint whose metadata the first rank has read for all."""

    def __init__(self, path: Path, metadata: Metadata):
        super().__init__(path)
        self.metadata = metadata
        self.error: Exception | None = None

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The metadata that was given."""
        return self.metadata

    def read_data(self, plan: Any, planner: Any) -> Future[Any]:
        """Read what this rank holds, in place."""
        try:
            return super().read_data(plan, planner)
        except OSError as error:
            self.error = _portable(error, Path(self.path))
            return _done(None)
        except Exception as error:
            self.error = RuntimeError(f"{type(error).__name__}: {error}".splitlines()[0])
            return _done(None)
