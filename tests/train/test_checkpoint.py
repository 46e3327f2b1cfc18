"""Checkpoints of a sharded model: at other numbers of ranks, while tensors change, damaged, killed, on a failing disk."""

import contextlib
import errno
import io
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from nanochat.common.errors import UserError
from nanochat.common.files import remove_leftovers
from nanochat.model.config import GPTConfig
from nanochat.model.gpt import GPT
from nanochat.optim.build import Optimizers
from nanochat.optim.settings import OptimizerSettings
from nanochat.parallel.ranks import Ranks
from nanochat.parallel.sharding import shard
from nanochat.train import checkpoint_files
from nanochat.train.checkpoint import Checkpoints, RunState, named_tensors
from nanochat.train.checkpoint_files import Staging, StepWriter
from nanochat.train.safe_metadata import _OnlyTensors
from tests.conftest import ROOT
from tests.processes import run_ranks, start_ranks

Arrays = dict[str, np.ndarray]


def build(ranks: Ranks, mesh: tuple[int, ...] = (), depth: int = 2) -> tuple[GPT, Optimizers]:
    """A model of the same random weights at every number of ranks, sharded."""
    model = GPT(GPTConfig.from_depth(depth, 300, 32))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    shape = mesh or (ranks.world_size,)
    shard(model, init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard")[-len(shape) :]), torch.float32, True)
    return model, Optimizers(model, OptimizerSettings(muon_beta2=0.9, muon_hold_norm=True), torch.float32)


def train(model: GPT, optimizers: Optimizers, seed: int) -> None:
    ids = torch.randint(0, 300, (2, 33), generator=torch.Generator().manual_seed(seed))
    model(ids[:, :-1], ids[:, 1:]).backward()
    optimizers.step(seed, 100)
    model.zero_grad()


def everything(model: GPT, optimizers: Optimizers) -> Arrays:
    """All that a checkpoint must hold, brought together from all ranks."""

    def whole(tensor: Tensor) -> np.ndarray:
        return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).numpy().copy()

    return {name: whole(tensor) for name, tensor in named_tensors(model, optimizers).items()}


def save_two(ranks: Ranks, directory: Path, mesh: tuple[int, ...]) -> list[Arrays]:
    """Train, save steps 10 and 20; what the tensors held then."""
    model, optimizers = build(ranks, mesh)
    checkpoints, held = Checkpoints(directory, ranks), []
    for step in (10, 20):
        train(model, optimizers, step)
        checkpoints.save(RunState(step, 2 * step, 0.5, {"val_bpb": step / 7}), model, optimizers)
        held.append(everything(model, optimizers))
    checkpoints.wait()
    return held if ranks.is_first else []


def load(ranks: Ranks, directories: list[Path], mesh: tuple[int, ...] = (), depth: int = 2) -> list[tuple[Any, Arrays, str]]:
    """Load from each directory: the state, all tensors, and what was said on standard error; for a UserError its text alone."""
    loaded: list[tuple[Any, Arrays, str]] = []
    for directory in directories:
        model, optimizers = build(ranks, mesh, depth)
        with contextlib.redirect_stderr(io.StringIO()) as said:
            try:
                state: Any = Checkpoints(directory, ranks).load(model, optimizers)
                tensors = everything(model, optimizers)
            except UserError as error:
                state, tensors = str(error), {}
        loaded.append((state, tensors, said.getvalue()))
    return loaded


def assert_same(one: Arrays, other: Arrays) -> None:
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Arrays]]:
    """A directory with the steps 10 and 20 of four ranks, and what the tensors held."""
    directory = tmp_path_factory.mktemp("run") / "checkpoints"
    held = run_ranks(4, save_two, directory, ())[0]
    assert {"model.lm_head.weight", "optimizer.exp_avg_sq.lm_head.weight", "optimizer.step.lm_head.weight"} <= held[0].keys()
    assert "optimizer.momentum_buffer.model.layers.1.mlp.fc2.weight" in held[0]
    assert not np.array_equal(held[0]["model.lm_head.weight"], held[1]["model.lm_head.weight"])
    return directory, held


@pytest.mark.parametrize(("world_size", "mesh"), [(4, (2, 2)), (3, ()), (2, ()), (1, ())])
def test_what_four_ranks_saved_other_numbers_load_bit_for_bit(
    saved: tuple[Path, list[Arrays]], world_size: int, mesh: tuple[int, ...]
) -> None:
    directory, held = saved
    for state, tensors, said in (answers[0] for answers in run_ranks(world_size, load, [directory], mesh)):
        assert state == RunState(20, 40, 0.5, {"val_bpb": 20 / 7})
        assert_same(tensors, held[1])
        assert said == ""


@pytest.mark.parametrize(("world_size", "mesh", "loading"), [(1, (), 4), (4, (2, 2), 1)])
def test_what_others_saved_four_ranks_and_one_load(tmp_path: Path, world_size: int, mesh: tuple[int, ...], loading: int) -> None:
    held = run_ranks(world_size, save_two, tmp_path, mesh)[0]
    state, tensors, said = run_ranks(loading, load, [tmp_path])[0][0]
    assert (state.step, said) == (20, "")
    assert_same(tensors, held[1])
    n_bytes = sum(array.nbytes for array in held[1].values())
    written = sum(file.stat().st_size for file in (tmp_path / "step_00000020").glob("*.distcp"))
    assert n_bytes <= written < 1.2 * n_bytes  # what nodes replicate is written once


def change_while_writing(ranks: Ranks, directory: Path) -> tuple[Arrays, list[str]]:
    model, optimizers = build(ranks)
    train(model, optimizers, 0)
    held, changed, stages = everything(model, optimizers), threading.Event(), []
    write_data = StepWriter.write_data

    def late(*args: Any) -> Any:
        assert changed.wait(30)
        return write_data(*args)

    StepWriter.write_data = late  # type: ignore[method-assign]
    checkpoints = Checkpoints(directory, ranks)
    path = checkpoints.save(RunState(1), model, optimizers)
    stages += [f"{path.exists()} {checkpoints.poll()}"]
    for tensor in named_tensors(model, optimizers).values():
        tensor.fill_(7)
    train(model, optimizers, 1)
    changed.set()
    stages += [str(checkpoints.wait() == path), str(path.exists()), str(checkpoints.poll()), str(checkpoints.wait())]
    return held, stages


def test_a_checkpoint_does_not_see_what_training_changes_while_it_is_written(tmp_path: Path) -> None:
    answers = run_ranks(2, change_while_writing, tmp_path)
    for _, stages in answers:
        assert stages == ["False None", "True", "True", "None", "None"]
    assert_same(run_ranks(2, load, [tmp_path])[0][0][1], answers[0][0])


def leave_while_writing(ranks: Ranks, directory: Path) -> tuple[bool, bool]:
    model, optimizers = build(ranks)
    write_data = StepWriter.write_data

    def slow(*args: Any) -> Any:
        time.sleep(0.3)
        return write_data(*args)

    StepWriter.write_data = slow  # type: ignore[method-assign]
    checkpoints = Checkpoints(directory, ranks)
    path = checkpoints.save(RunState(1), model, optimizers)
    before = path.exists()
    checkpoints.close()
    return before, path.exists() or not ranks.is_first


def test_a_rank_that_leaves_lets_its_save_come_to_its_end(tmp_path: Path) -> None:
    assert run_ranks(2, leave_while_writing, tmp_path) == [(False, True)] * 2


def save_steps(ranks: Ranks, directory: Path, steps: list[int], keep_every: int = -1) -> list[Path]:
    model, optimizers = build(ranks)
    checkpoints = Checkpoints(directory, ranks, keep_every)
    for step in steps:
        checkpoints.save(RunState(step), model, optimizers)
    checkpoints.wait()
    return checkpoints.all()


def test_the_last_two_are_kept_and_later_ones_of_a_run_that_went_back_are_not(tmp_path: Path) -> None:
    (kept,) = run_ranks(1, save_steps, tmp_path, [5, 10, 15, 20])
    assert [path.name for path in kept] == ["step_00000015", "step_00000020"]
    (kept,) = run_ranks(1, save_steps, tmp_path, [17])
    assert [path.name for path in kept] == ["step_00000015", "step_00000017"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step_00000015", "step_00000017"]
    assert (tmp_path / "latest").read_text() == "step_00000017\n"


def test_one_every_so_often_is_kept_for_good(tmp_path: Path) -> None:
    (kept,) = run_ranks(1, save_steps, tmp_path, [5, 10, 15, 20, 25, 30, 35], 20)
    assert [path.name for path in kept] == ["step_00000020", "step_00000030", "step_00000035"]


def test_one_that_is_being_copied_off_the_node_stays_until_it_is(tmp_path: Path) -> None:
    (tmp_path / "copied").write_text("step_00000010")
    (kept,) = run_ranks(1, save_steps, tmp_path, [5, 10, 15, 20, 25])
    assert [path.name for path in kept] == ["step_00000010", "step_00000020", "step_00000025"]
    (tmp_path / "copied").unlink()
    (kept,) = run_ranks(1, save_steps, tmp_path, [30])
    assert [path.name for path in kept] == ["step_00000025", "step_00000030"]


def newest_first(ranks: Ranks, directory: Path) -> list[str]:
    return [path.name for path in Checkpoints(directory, ranks).latest()]


@pytest.mark.parametrize(
    ("pointer", "order"),
    [
        ("step_00000015\n", [15, 20, 10]),
        ("step_00000099", [20, 15, 10]),
        ("", [20, 15, 10]),
        ("\xff../x", [20, 15, 10]),
        (None, [20, 15, 10]),
    ],
)
def test_the_pointer_says_which_is_tried_first(tmp_path: Path, pointer: str | None, order: list[int]) -> None:
    for step in (10, 15, 20):
        (tmp_path / f"step_{step:08d}").mkdir()
    if pointer is not None:
        (tmp_path / "latest").write_bytes(pointer.encode("latin-1"))
    assert run_ranks(1, newest_first, tmp_path) == [[f"step_{step:08d}" for step in order]]


def largest(path: Path) -> Path:
    return max(path.glob("*.distcp"), key=lambda file: file.stat().st_size)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 100)


def flip(path: Path) -> None:
    """Turn one bit in the middle of a file."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 4]))


DAMAGES = {
    "missing file": (lambda path: (path / "__2_0.distcp").unlink(), "__2_0.distcp is missing"),
    "short file": (lambda path: truncate(path / "__3_0.distcp"), "the checksum of __3_0.distcp"),
    "garbage of the right length": (lambda path: largest(path).write_bytes(bytes(largest(path).stat().st_size)), "the checksum of __"),
    "a flipped bit": (lambda path: flip(largest(path)), "the checksum of __"),
    "missing checksums": (lambda path: (path / "checksums.json").unlink(), "checksums.json"),
    "short checksums": (lambda path: truncate(path / "checksums.json"), "checksums.json is not a checkpoint's"),
    "strange checksums": (lambda path: (path / "checksums.json").write_text("{}"), "checksums.json is not a checkpoint's"),
    "missing metadata": (lambda path: (path / ".metadata").unlink(), ".metadata"),
    "short metadata": (lambda path: truncate(path / ".metadata"), ".metadata"),
    "garbage metadata": (lambda path: (path / ".metadata").write_bytes(b"\x80\x04garbage"), ".metadata"),
    "metadata of something else": (lambda path: (path / ".metadata").write_bytes(b"\x80\x04]."), ".metadata"),
    "missing state": (lambda path: (path / "state.json").unlink(), "state.json"),
    "short state": (lambda path: (path / "state.json").write_text('{"step": 2'), "state.json"),
    "strange state": (lambda path: (path / "state.json").write_text('{"stap": 2}'), "state.json"),
}


@pytest.fixture(scope="module")
def damaged(saved: tuple[Path, list[Arrays]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two ranks load from a copy whose newest checkpoint is damaged in each of these ways; then from one damaged altogether."""
    copies = []
    for number, (damage, _) in enumerate(DAMAGES.values()):
        copies.append(tmp_path_factory.mktemp("damaged") / str(number))
        shutil.copytree(saved[0], copies[-1])
        damage(copies[-1] / "step_00000020")
    copies.append(copies[0].with_name("all"))
    shutil.copytree(copies[2], copies[-1])
    truncate(largest(copies[-1] / "step_00000010"))
    answers = run_ranks(2, load, copies)
    return {name: [answer[number] for answer in answers] for number, name in enumerate([*DAMAGES, "all"])}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(saved: tuple[Path, list[Arrays]], damaged: dict[str, Any], damage: str) -> None:
    warnings = [said for _, _, said in damaged[damage]]
    assert warnings[0].startswith("warning: ")
    assert "step_00000020 is damaged" in warnings[0]
    assert DAMAGES[damage][1] in warnings[0]
    assert "damaged-step_00000020 until the next" in warnings[0]
    assert warnings[0].count("\n") == 2
    assert warnings[1] == ""
    for state, tensors, _ in damaged[damage]:
        assert state.step == 10
        assert_same(tensors, saved[1][0])


def test_when_all_are_damaged_every_rank_says_what_to_do(damaged: dict[str, Any]) -> None:
    for error, _, _ in damaged["all"]:
        assert "no checkpoint in" in error
        assert "move that directory" in error
    assert damaged["all"][0][2].count("warning") == 2


def load_when_the_disk_fails_once(ranks: Ranks, directory: Path, name: str) -> tuple[int | None, RunState]:
    """The error's number where a file cannot be read, and what is loaded when it can be again."""

    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    model, optimizers = build(ranks)
    checkpoints = Checkpoints(directory, ranks)
    where, reads = {"checksums.json": (checkpoint_files, "read_json"), ".metadata": (_OnlyTensors, "load")}[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(where, reads, fail)
        with pytest.raises(OSError, match="Input/output") as raised:
            checkpoints.load(model, optimizers)
    return raised.value.errno, checkpoints.load(model, optimizers)


@pytest.mark.parametrize("name", ["checksums.json", ".metadata"])
def test_a_disk_that_cannot_be_read_now_damages_nothing(saved: tuple[Path, list[Arrays]], tmp_path: Path, name: str) -> None:
    directory = Path(shutil.copytree(saved[0], tmp_path / "checkpoints"))
    for number, state in run_ranks(2, load_when_the_disk_fails_once, directory, name):
        assert (number, state.step) == (errno.EIO, 20)
    assert not list(directory.glob("damaged-*"))


def test_checksums_without_anything_around_them_are_read(saved: tuple[Path, list[Arrays]], tmp_path: Path) -> None:
    directory = Path(shutil.copytree(saved[0], tmp_path / "checkpoints"))
    for path in directory.glob("step_*/checksums.json"):
        path.write_text(json.dumps(json.loads(path.read_text())["sha256"]))
    [(state, _, said)] = run_ranks(1, load, [directory])[0]
    assert (state.step, said) == (20, "")


def load_twice(ranks: Ranks, directory: Path) -> int:
    """How often memory for a copy is got."""
    made: list[Staging] = []
    init = Staging.__init__

    def counted(self: Staging, tensors: dict[str, Tensor]) -> None:
        made.append(self)
        init(self, tensors)

    Staging.__init__ = counted  # type: ignore[method-assign]
    model, optimizers = build(ranks)
    checkpoints = Checkpoints(directory, ranks)
    for step in (21, 22):
        checkpoints.load(model, optimizers)
        checkpoints.save(RunState(step), model, optimizers)
        checkpoints.wait()
    return len(made)


def test_memory_for_a_copy_is_got_once(saved: tuple[Path, list[Arrays]], tmp_path: Path) -> None:
    directory = Path(shutil.copytree(saved[0], tmp_path / "checkpoints"))
    assert run_ranks(1, load_twice, directory) == [1]
    assert run_ranks(1, load, [directory])[0][0][0].step == 22


@pytest.mark.parametrize(("depth", "words"), [(4, "has no tensor model.model.layers.0"), (1, "is not this model's")])
def test_another_models_checkpoint_is_refused(saved: tuple[Path, list[Arrays]], depth: int, words: str) -> None:
    for error, _, said in (answers[0] for answers in run_ranks(2, load, [saved[0]], (), depth)):
        assert "choose another --model_tag" in error
        assert said == ""
        assert words in error or depth == 4


def test_where_there_is_none_training_starts_anew(tmp_path: Path) -> None:
    for state, tensors, said in (answers[0] for answers in run_ranks(2, load, [tmp_path / "none"])):
        assert (state, said) == (RunState(), "")
        assert all(not tensor.any() for name, tensor in tensors.items() if name.startswith("optimizer."))


def fail_on_one_rank(ranks: Ranks, directory: Path) -> list[Any]:
    model, optimizers = build(ranks)
    train(model, optimizers, 0)
    checkpoints = Checkpoints(directory, ranks)
    checkpoints.save(RunState(1), model, optimizers)
    checkpoints.wait()
    if ranks.rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    checkpoints.save(RunState(2), model, optimizers)
    try:
        checkpoints.wait()
    except OSError as error:
        return [error.errno, error.filename, checkpoints.poll(), checkpoints.wait()]
    return []


def test_a_disk_that_fails_one_rank_is_an_error_of_all(tmp_path: Path) -> None:
    for number, name, *after in run_ranks(3, fail_on_one_rank, tmp_path):
        assert number == errno.EFBIG
        assert name.startswith(str(tmp_path))
        assert after == [None, None]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step_00000001"]
    assert run_ranks(2, load, [tmp_path])[1][0][0] == RunState(1)


def poll_a_failure(ranks: Ranks, directory: Path, failing: str) -> tuple[int, int | None]:
    """How many polls of a rank's own pace it took, and the error's number, when something of the first rank's fails."""

    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    setattr(checkpoint_files, failing, fail)
    model, optimizers = build(ranks)
    checkpoints = Checkpoints(directory, ranks)
    checkpoints.save(RunState(1), model, optimizers)
    for polls in range(1000):
        try:
            checkpoints.poll()
        except OSError as error:
            return polls, error.errno
        time.sleep(0.03 * (1 + ranks.rank))
    return 1000, None


@pytest.mark.parametrize("failing", ["remove", "write_json", "publish"])
def test_what_fails_on_the_first_rank_alone_every_rank_raises_at_the_same_poll(tmp_path: Path, failing: str) -> None:
    one, other = run_ranks(2, poll_a_failure, tmp_path, failing)
    assert one == other
    assert one[1] == errno.EIO


def save_to_a_disk_of_its_own(ranks: Ranks, directory: Path) -> str:
    try:
        save_steps(ranks, directory / str(ranks.rank), [1])
    except UserError as error:
        return str(error)
    return ""


def test_ranks_that_do_not_share_a_disk_are_told_so(tmp_path: Path) -> None:
    one, other = run_ranks(2, save_to_a_disk_of_its_own, tmp_path)
    assert one == other
    assert "NANOCHAT_BASE_DIR must be on a disk that all nodes share" in one
    assert list(tmp_path.rglob("step_*")) == []


def fill_the_disk(ranks: Ranks, directory: Path) -> str:
    model, optimizers = build(ranks)
    train(model, optimizers, 0)
    checkpoints = Checkpoints(directory, ranks)
    for step in range(1, 5):
        checkpoints.save(RunState(step), model, optimizers)
        try:
            checkpoints.wait()
        except OSError as error:
            return f"{errno.errorcode[error.errno or 0]} {sorted(path.name for path in directory.iterdir())}"
    return "no error"


def test_a_full_disk_is_an_oserror_that_says_so_and_the_last_checkpoint_stays(tmp_path: Path) -> None:
    """On a file system of 7 MB, which holds one checkpoint of 4 MB but not a second."""
    private = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]
    mount = 'mount -t tmpfs -o size=7m none "$0"'
    if shutil.which("unshare") is None or subprocess.run([*private, "sh", "-c", mount, str(tmp_path)], capture_output=True).returncode:
        pytest.skip("needs a file system of its own, which this user may not mount here")
    program = "import sys, pathlib; from nanochat.parallel.ranks import ranks; from tests.train.test_checkpoint import fill_the_disk\n"
    program += "with ranks() as r: print(fill_the_disk(r, pathlib.Path(sys.argv[1])))"
    command = [*private, "sh", "-c", f'{mount} && exec "$@"', str(tmp_path), sys.executable, "-c", program, str(tmp_path)]
    finished = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert (finished.stdout.strip(), finished.stderr) == ("ENOSPC ['latest', 'step_00000001']", "")


def save_for_ever(ranks: Ranks, directory: Path, log: Path) -> None:
    """Load, check, then save one step after another, each with its number in every tensor."""
    model, optimizers = build(ranks)
    if ranks.is_first:
        remove_leftovers(directory)
    ranks.barrier()
    checkpoints = Checkpoints(directory, ranks)
    with log.open("a") as file, contextlib.redirect_stderr(file):
        newest = checkpoints.latest()[:1]
        state = checkpoints.load(model, optimizers)
        if not newest:
            optimizers.init_state()
        tensors = named_tensors(model, optimizers).values()
        for tensor in tensors if newest else []:
            local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
            if not bool((local == state.step).all()) or int(newest[0].name[-8:]) != state.step:
                print(f"{newest[0]} is not whole", file=file, flush=True)
        if ranks.is_first:
            (directory / "begun").touch()
        while True:
            state.step += 1
            for tensor in tensors:
                tensor.fill_(state.step)
            checkpoints.save(state, model, optimizers)


def test_killed_at_any_moment_checkpoints_are_complete_or_absent(tmp_path: Path) -> None:
    directory, log, generator = tmp_path / "checkpoints", tmp_path / "log", random.Random(0)
    directory.mkdir()
    newest: list[int] = []
    while len(newest) < 6 or (newest[-1] == newest[0] and len(newest) < 30):  # a busy machine may finish none in this time
        started = start_ranks(2, save_for_ever, directory, log)
        deadline = time.monotonic() + 30
        while not (directory / "begun").exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(generator.uniform(0.05, 0.4))
        for process, _ in started:
            process.kill()
        for process, _ in started:
            process.join()
        (directory / "begun").unlink()
        newest.append(max([int(path.name[-8:]) for path in directory.glob("step_*")], default=0))
    assert log.read_text() == ""
    assert newest == sorted(newest)
    assert newest[-1] > newest[0]
