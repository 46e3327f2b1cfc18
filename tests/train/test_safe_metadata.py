"""A checkpoint's `.metadata` is a pickle: an honest one is read as torch reads it, a hostile one does nothing."""

import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader, metadata
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata

from nanochat.common.checksums import read_checksums, write_checksums
from nanochat.common.errors import UserError
from nanochat.common.files import sha256_file
from nanochat.train import safe_metadata
from nanochat.train.checkpoint import Checkpoints, RunState, load_checkpoint_weights
from nanochat.train.safe_metadata import load_metadata
from tests.processes import run_ranks
from tests.train.test_checkpoint import build, train


def save(ranks: Any, directory: Path) -> None:
    model, optimizers = build(ranks)
    checkpoints = Checkpoints(directory, ranks)
    train(model, optimizers, 1)
    checkpoints.save(RunState(1), model, optimizers)
    checkpoints.wait()


def save_by_a_torch_that_writes_more(ranks: Any, directory: Path) -> tuple[str, list[str]]:
    """What is said and what is there when the metadata names something that is not read here."""
    del safe_metadata.ALLOWED[safe_metadata.STORAGE_MODULE, "_StorageInfo"]
    try:
        save(ranks, directory)
    except RuntimeError as error:
        return str(error), [path.name for path in directory.iterdir()]
    return "", []


def test_what_could_not_be_read_again_is_no_checkpoint(tmp_path: Path) -> None:
    [(said, there)] = run_ranks(1, save_by_a_torch_that_writes_more, tmp_path)
    assert "_StorageInfo, which no list of tensors needs" in said
    assert there == []


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of two ranks."""
    directory = tmp_path_factory.mktemp("saved")
    run_ranks(2, save, directory)
    return directory / "step_00000001"


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "step_00000001"))


def put(path: Path, pickled: bytes) -> None:
    """Give a checkpoint another `.metadata`, with the checksum that belongs to it."""
    (path / ".metadata").write_bytes(pickled)
    rewrite_checksums(path)


def rewrite_checksums(path: Path) -> None:
    """Make a checkpoint's checksums those of its files as they are now."""
    write_checksums(path, {name: sha256_file(path / name) for name in read_checksums(path)})


def test_an_honest_one_says_what_torch_reads_in_it(saved: Path) -> None:
    ours, theirs = load_metadata(saved), FileSystemReader(saved).read_metadata()
    assert ours.state_dict_metadata == theirs.state_dict_metadata
    assert ours.storage_data == theirs.storage_data
    assert len(ours.storage_data) > len(ours.state_dict_metadata) > 10  # in parts


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.int64, torch.uint8, torch.bool])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last, torch.preserve_format])
def test_every_kind_of_tensor_is_read(copy: Path, kind: torch.dtype, memory_format: torch.memory_format) -> None:
    kept = load_metadata(copy)
    name, first = next(iter(kept.state_dict_metadata.items()))
    kept.state_dict_metadata = {name: replace(first, properties=metadata.TensorProperties(kind, memory_format=memory_format))}
    put(copy, pickle.dumps(kept))
    assert load_metadata(copy).state_dict_metadata == kept.state_dict_metadata


def test_an_enumeration_that_is_pickled_by_name_is_read(copy: Path) -> None:
    class ByName:
        def __reduce__(self) -> Any:
            return getattr, (metadata._MEM_FORMAT_ENCODING, "TORCH_CHANNELS_LAST")

    kept = load_metadata(copy)
    kept.planner_data = ByName()
    put(copy, pickle.dumps(kept))
    assert load_metadata(copy).planner_data is metadata._MEM_FORMAT_ENCODING.TORCH_CHANNELS_LAST


class Calls:
    """Pickled, it is a call of a function."""

    def __init__(self, function: Callable[..., Any], *args: Any):
        self.function, self.args = function, args

    def __reduce__(self) -> Any:
        return self.function, self.args


def hostile(canary: Path) -> dict[str, Any]:
    program = f"open({str(canary)!r}, 'w')"
    return {
        "a shell": Calls(os.system, f"touch '{canary}'"),
        "a file": Calls(open, str(canary), "w"),
        "a path's own doing": Calls(Path.touch, canary),
        "Python": Calls(exec, program),
        "Python's value": Calls(eval, program),
        "a module": Calls(__import__, "antigravity"),
        "getattr": Calls(getattr, canary, "touch"),
        "torch's own loader": Calls(torch.load, str(canary)),
        "another pickle": Calls(pickle.loads, pickle.dumps(Calls(open, str(canary), "w"))),
        "a function of torch": Calls(torch.save, 1, str(canary)),
    }


@pytest.mark.parametrize("what", hostile(Path("/")))
@pytest.mark.parametrize("where", ["instead of it", "inside it"])
def test_a_hostile_one_is_refused_and_nothing_of_it_runs(what: str, where: str, copy: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    thing = hostile(canary)[what]
    put(copy, pickle.dumps(thing if where == "instead of it" else replace(load_metadata(copy), planner_data=thing)))
    with pytest.raises(ValueError, match=r"\.metadata cannot be read"):
        load_metadata(copy)
    assert not canary.exists()


def test_the_same_pickles_do_harm_where_torch_reads_them(copy: Path, tmp_path: Path) -> None:
    """Or the test above would prove nothing."""
    canary = tmp_path / "canary"
    for what in ("a shell", "Python", "another pickle", "a function of torch"):
        put(copy, pickle.dumps(Metadata({}, hostile(canary)[what], {})))
        FileSystemReader(copy).read_metadata()
        assert canary.exists(), what
        canary.unlink()


def test_the_line_names_what_was_asked_for(copy: Path, tmp_path: Path) -> None:
    put(copy, pickle.dumps(hostile(tmp_path / "canary")["a shell"]))
    with pytest.raises(UserError, match=r"it names posix\.system, .* nothing of it ran"):
        load_checkpoint_weights(copy, {})


@pytest.mark.parametrize("elsewhere", ["../secret.distcp", "/etc/passwd", "..", "", "below/it.distcp"])
def test_files_outside_the_checkpoint_are_not_read(copy: Path, elsewhere: str) -> None:
    kept = load_metadata(copy)
    index, stored = next(iter(kept.storage_data.items()))
    kept.storage_data[index] = replace(stored, relative_path=elsewhere)
    put(copy, pickle.dumps(kept))
    with pytest.raises(ValueError, match="no part of a file beside it"):
        load_metadata(copy)


def test_what_is_no_tensor_is_refused(copy: Path) -> None:
    """Torch would unpickle it while it loads."""
    kept = load_metadata(copy)
    kept.state_dict_metadata["extra"] = BytesStorageMetadata()
    put(copy, pickle.dumps(kept))
    with pytest.raises(ValueError, match="BytesStorageMetadata"):
        load_metadata(copy)


def test_a_part_that_is_more_than_a_tensor_is_refused(copy: Path, tmp_path: Path) -> None:
    """Even where its checksum is right: torch reads the parts by weights_only."""
    kept = load_metadata(copy)
    name, wanted = next((name, each) for name, each in kept.state_dict_metadata.items() if name.startswith("model."))
    canary = tmp_path / "canary"
    part = tmp_path / "part"
    torch.save(Calls(open, str(canary), "w"), part)
    for file in copy.glob("*.distcp"):
        shutil.copy(part, file)
    kept.storage_data = {index: replace(each, offset=0, length=part.stat().st_size) for index, each in kept.storage_data.items()}
    put(copy, pickle.dumps(kept))
    rewrite_checksums(copy)
    with pytest.raises(UserError, match="Weights only load failed"):
        load_checkpoint_weights(copy, {name: torch.empty(wanted.size)})
    assert not canary.exists()
    torch.load(part, weights_only=False).close()
    assert canary.exists()
