"""Checkpoints: all that a run needs to go on as if it had never stopped, at any number of ranks."""

from concurrent.futures import Future, wait
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from nanochat.common.console import warn
from nanochat.common.errors import UserError
from nanochat.common.files import atomic_path, discard, read_json, remove
from nanochat.model.gpt import GPT
from nanochat.optim.build import Optimizers
from nanochat.parallel.ranks import PATIENCE, Ranks
from nanochat.parallel.sharding import reshard
from nanochat.train.checkpoint_directory import COPIED_FILE, LATEST_FILE, kept_steps, named, standing
from nanochat.train.checkpoint_files import (
    METADATA_FILE,
    STATE_FILE,
    Staging,
    StepReader,
    StepWriter,
    checksums_of,
    wrong_file,
)
from nanochat.train.safe_metadata import load_metadata

DAMAGED = "damaged-"
LOOK_EVERY_S = 1.0
LEAVE_AFTER_S = 600.0  # where another rank has failed, its part of a save may never come


@dataclass
class RunState:
    """Where a run stands, besides its tensors."""

    step: int = 0
    """Steps done."""
    samples: int = 0
    """Samples taken; the data's order is a function of their numbers."""
    elapsed_s: float = 0.0
    """Seconds spent training, over all starts."""
    extra: dict[str, float] = field(default_factory=dict)
    """Figures that later stages and the report want, such as the last validation."""
    recent: list[list[float]] = field(default_factory=list)
    """Loss and norm of the gradient of the last good steps, which a new one is held against."""
    bad_in_a_row: int = 0
    """Bad steps since the last good one."""
    bad_steps: int = 0
    """All of them."""


def named_tensors(model: GPT, optimizers: Optimizers) -> dict[str, Tensor]:
    """Every tensor that training changes: `model.NAME`, and `optimizer.KEY.NAME` for what the optimizers keep of it.

    What they have not made yet, where no step has moved anything, is made as it is before the first one.
    """
    reshard(model)  # optimizers know the parameters by their shards
    optimizers.init_state()
    tensors = {f"model.{name}": parameter.detach() for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        for optimizer in optimizers.all:
            if parameter in optimizer.state:
                tensors |= {f"optimizer.{key}.{name}": value for key, value in optimizer.state[parameter].items()}
    return tensors


class Checkpoints:
    """The checkpoints of one stage of a run: directories `step_00000100`, complete or absent, and `latest`, which names the newest.

    They are written while training goes on. Every rank makes one of these and calls its methods alike.
    """

    def __init__(self, directory: Path, ranks: Ranks, keep_every: int = -1):
        """keep_every: those of steps that it divides are kept for good, besides the last two; -1 for none."""
        self.directory, self.ranks, self.keep_every = directory, ranks, keep_every
        # A save's collectives run in a thread beside training's: in a group of their own they cannot get in each other's way.
        self._group = dist.new_group(backend="gloo", timeout=PATIENCE)
        self._staging: Staging | None = None
        self._writer: StepWriter | None = None
        self._written: Future[Metadata] = Future()

    def all(self) -> list[Path]:
        """Those that are there, oldest first."""
        return list(standing(self.directory).values())

    def latest(self) -> list[Path]:
        """Those that are there, in the order in which to try them: the one that `latest` names, then the others, newest first."""
        found = self.all()[::-1]
        newest = self.directory / named(self.directory, LATEST_FILE)
        return [newest, *(path for path in found if path != newest)] if newest in found else found

    def save(self, state: RunState, model: GPT, optimizers: Optimizers) -> Path:
        """Begin to write a checkpoint of what the tensors hold now; returns the path where it will stand.

        A save that is still under way is waited for; then one copy of the tensors is made on the CPU, and training may change them.
        """
        self.wait()
        path = self.directory / f"step_{state.step:08d}"
        writer = StepWriter(path, asdict(state), partial(self._published, path))
        written = dcp.async_save(
            named_tensors(model, optimizers), storage_writer=writer, process_group=self._group, async_stager=self._staging
        )
        assert isinstance(written, Future)
        self._writer, self._written = writer, written
        return path

    def poll(self) -> Path | None:
        """The checkpoint that was under way, once, when it stands on disk; else None. Costs little: call it after every step.

        Raises what has gone wrong with it on any rank, on every rank: OSError where a disk failed.
        """
        if self._writer is None:
            return None
        done = self._written.done()
        failed = done and (self._written.exception() is not None or self._writer.error is not None)
        counts = torch.tensor([float(done), float(failed)], device=self.ranks.device)
        all_done, any_failed = self.ranks.sum_(counts).tolist()
        if any_failed:
            wait([self._written], timeout=LEAVE_AFTER_S)  # this rank's part comes to its end too, and the next save begins anew
            failure = self._written.exception() if self._written.done() else None
            error = self._first_error(self._writer.error or _as_text(failure))
            self._writer = None
            raise error or AssertionError("a rank counted an error that no rank has")
        if all_done < self.ranks.world_size:
            return None
        path, self._writer = self._writer.destination, None
        return path

    def wait(self) -> Path | None:
        """Wait until the checkpoint that is under way stands on disk; returns and raises as poll does."""
        while self._writer is not None:
            wait([self._written], timeout=LOOK_EVERY_S)  # not longer: another rank may have failed
            if path := self.poll():
                return path
        return None

    def close(self) -> None:
        """Let this rank's part of a save that is under way come to its end, whatever that is: for leaving after an error."""
        if self._writer is not None:
            wait([self._written], timeout=LEAVE_AFTER_S)

    def load(self, model: GPT, optimizers: Optimizers) -> RunState:
        """Bring model and optimizers to the newest checkpoint that is whole; where there is none, return a new state.

        Each rank reads the parts that it holds, however many ranks wrote them, after all files have been held against their checksums.
        Damaged ones that are newer get another name. Raises UserError when a checkpoint's tensors are not those of this model, or when
        all that are there are damaged.
        """
        tensors = named_tensors(model, optimizers)
        if self._staging is None:
            self._staging = Staging(tensors)  # before the first save wants it
        found = self.ranks.from_first(self.latest)
        if not found:
            return RunState()
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        damaged: list[Path] = []
        for path in found:
            opened = self.ranks.from_first(partial(_open, path, shapes))
            if opened is not None:
                state, metadata, checksums = opened
                error = self._verify(path, checksums) or self._read(path, metadata, tensors)
                if error is None:
                    self.ranks.from_first(partial(_set_aside, damaged))
                    return state
                if isinstance(error, OSError):
                    raise error  # a disk that cannot be read now may be read later: nothing is given up for it
                _warn_damaged(path, error)
            damaged.append(path)
        raise UserError(f"no checkpoint in {self.directory} can be read; where they are beyond repair, move that directory to begin anew")

    def _verify(self, path: Path, checksums: dict[str, str]) -> Exception | None:
        """What is wrong with a checkpoint's files, on every rank; each reads a share of them."""
        error: Exception | None = None
        try:
            share = sorted(checksums)[self.ranks.rank :: self.ranks.world_size]
            if wrong := wrong_file(path, {name: checksums[name] for name in share}):
                error = ValueError(wrong)
        except OSError as failed:
            error = failed
        return self._first_error(error)

    def _read(self, path: Path, metadata: Metadata, tensors: dict[str, Tensor]) -> Exception | None:
        """Read a checkpoint in place; returns what any rank could not read, on every rank."""
        reader = StepReader(path, metadata)
        try:
            dcp.load(dict(tensors), storage_reader=reader, process_group=self._group)
        except CheckpointException as error:
            return self._first_error(RuntimeError(str(error).strip().splitlines()[-1]))
        return self._first_error(reader.error)

    def _first_error(self, error: Exception | None) -> Exception | None:
        """The error of the lowest rank that has one, on every rank."""
        errors: list[Exception | None] = [None] * self.ranks.world_size
        dist.all_gather_object(errors, error)
        return next((each for each in errors if each is not None), None)

    def _published(self, newest: Path) -> None:
        """Name the newest, then remove what is not kept: those before the last two, and what goes with a later step."""
        with atomic_path(self.directory / LATEST_FILE) as aside:
            aside.write_text(newest.name + "\n", encoding="utf-8")
        there = standing(self.directory)
        kept = kept_steps(set(there), int(newest.name[-8:]), self.keep_every)
        for step, path in there.items():
            if step not in kept and path.name != named(self.directory, COPIED_FILE):
                discard(path)
        for path in self.directory.glob(f"{DAMAGED}*"):
            remove(path)


def load_checkpoint_weights(path: Path, tensors: dict[str, Tensor]) -> None:
    """Read some of a checkpoint's tensors in place, by their names there. Every rank calls it.

    Raises UserError when it is not whole, or they are not in it with these shapes.
    """
    try:
        if wrong := wrong_file(path, checksums_of(path)):
            raise ValueError(wrong)
        metadata = load_metadata(path)
        saved = {name: m.size for name, m in metadata.state_dict_metadata.items() if isinstance(m, TensorStorageMetadata)}
        for name, tensor in tensors.items():
            if saved.get(name) != tensor.shape:
                raise ValueError(f"{name} of shape {tuple(tensor.shape)} is not in it")
        reader = StepReader(path, metadata)
        dcp.load(dict(tensors), storage_reader=reader)
    except (OSError, ValueError, CheckpointException) as error:
        raise UserError(f"the checkpoint {path} cannot be read ({error})") from None
    if reader.error:
        raise UserError(f"the checkpoint {path} cannot be read ({reader.error})")


def _as_text(error: BaseException | None) -> Exception | None:
    return None if error is None else RuntimeError(f"{type(error).__name__}: {error}")


def _warn_damaged(path: Path, error: Exception) -> None:
    warn(f"{path} is damaged ({error}); the checkpoint before it is tried")


def _set_aside(damaged: list[Path]) -> None:
    for path in damaged:
        aside = path.with_name(DAMAGED + path.name)
        remove(aside)
        path.rename(aside)
        warn(f"the damaged one lies in {aside} until the next checkpoint stands")


def _open(path: Path, shapes: dict[str, torch.Size]) -> tuple[RunState, Metadata, dict[str, str]] | None:
    """The state, the metadata and the checksums of a checkpoint; None, after a warning, when they are not whole.

    Raises UserError when its tensors do not have these names and shapes.
    """
    try:
        checksums = checksums_of(path)
        if wrong := wrong_file(path, {name: checksums[name] for name in (STATE_FILE, METADATA_FILE)}):
            raise ValueError(wrong)
        state = RunState(**read_json(path / STATE_FILE))
        metadata = load_metadata(path)
    except (FileNotFoundError, ValueError, TypeError, AttributeError) as error:
        _warn_damaged(path, error)
        return None
    saved = {name: m.size for name, m in metadata.state_dict_metadata.items() if isinstance(m, TensorStorageMetadata)}
    for name in sorted(shapes.keys() - saved.keys()):
        raise UserError(
            f"{path} has no tensor {name}: another model or optimizer made it; give the flags that the run began with, or choose "
            "another --model_tag"
        )
    for name, shape in sorted(saved.items()):
        if shapes.get(name) != shape:
            raise UserError(f"{path}: {name} of shape {tuple(shape)} is not this model's; choose another --model_tag")
    return state, metadata, checksums
