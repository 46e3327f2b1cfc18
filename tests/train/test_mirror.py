"""A run's copy off its node: at a path and in an object store, by that store's own client; a new node goes on from it."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nanochat.common.errors import UserError
from nanochat.model.find import find_model
from nanochat.train import mirror_command, mirroring
from nanochat.train.checkpoint_directory import standing
from nanochat.train.mirror import Mirror, open_mirror
from nanochat.train.run_directory import StageDirectory
from tests.conftest import ROOT, TINY, World, wrong_request

FLAGS = (*TINY, "--num_iterations=60", "--save_every=10", "--keep_every=20")
Put = Callable[[str, bytes], None]


class Store:
    """A mirror's address, and what it holds."""

    def __init__(self, url: str, environment: dict[str, str]):
        import fsspec

        self.url, self.environment = url, environment
        endpoint = {"endpoint_url": environment["AWS_ENDPOINT_URL"]} if environment else {}
        self.fs, self.root = fsspec.core.url_to_fs(url, use_listings_cache=False, **endpoint)

    def files(self) -> set[str]:
        """All that it holds, below its root."""
        return {str(each).removeprefix(self.root).lstrip("/") for each in self.fs.find(self.root)}

    def flip(self, name: str) -> None:
        """Change one byte of a file."""
        data = bytearray(self.fs.cat_file(f"{self.root}/{name}"))
        data[len(data) // 2] ^= 1
        self.fs.pipe_file(f"{self.root}/{name}", bytes(data))


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    """The environment of an S3 client whose store is on this machine, with a bucket named `runs`."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "an-id",
        "AWS_SECRET_ACCESS_KEY": "a-key",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        import fsspec

        fsspec.filesystem("s3", endpoint_url=environment["AWS_ENDPOINT_URL"]).mkdir("runs")
        yield environment
    server.stop()


@pytest.fixture(params=["path", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "path":
        return Store(str(tmp_path / "mirror éà"), {})
    return Store(f"s3://runs/{tmp_path.name}", request.getfixturevalue("s3"))


@pytest.fixture(scope="module")
def unbroken(world: World) -> dict[int, float]:
    """The losses of a run that nothing disturbs."""
    finished = world.run("scripts.base_train", *FLAGS, "--model_tag=no-mirror")
    assert finished.returncode == 0, finished.stderr
    return world.losses("no-mirror")


def start(world: World, tag: str, store: Store, *flags: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        world.arguments("scripts.base_train", *FLAGS, f"--model_tag={tag}", f"--checkpoint_mirror={store.url}", *flags),
        cwd=ROOT,
        env=world.environment(**store.environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(world: World, tag: str, store: Store, *flags: str) -> "subprocess.CompletedProcess[str]":
    return world.run("scripts.base_train", *FLAGS, f"--model_tag={tag}", f"--checkpoint_mirror={store.url}", *flags, **store.environment)


def until(process: "subprocess.Popen[str]", words: str, times: int = 1) -> None:
    """Read what a run says, up to the line where it says these words for that many times."""
    assert process.stdout
    said = ""
    for line in process.stdout:
        said += line
        if said.count(words) == times:
            return
    raise AssertionError(said)


def test_a_new_node_goes_on_where_the_old_one_died(world: World, store: Store, unbroken: dict[int, float]) -> None:
    tag = f"moved-{store.fs.protocol if isinstance(store.fs.protocol, str) else store.fs.protocol[0]}"
    old = start(world, tag, store)
    until(old, "copied step_", 2)
    old.kill()
    old.communicate()
    shutil.rmtree(world.base / "runs" / tag)

    new = finish(world, tag, store)
    assert new.returncode == 0, new.stderr
    assert f"from {store.url}" in new.stdout
    assert "the run goes on from there" in new.stdout
    assert world.losses(tag) == unbroken
    stage = world.base / "runs" / tag / "base"
    weights = "base/model/model.safetensors"
    assert (stage / "model/model.safetensors").read_bytes() == (world.base / "runs/no-mirror" / weights).read_bytes()

    here = {str(path.relative_to(stage)) for path in stage.rglob("*") if path.is_file() and path.name != ".lock"}
    there = {name.removeprefix(f"{tag}/base/") for name in store.files()}
    listed = {int(name[-13:-5]) for name in there if name.startswith("checkpoints/step_") and name.count("/") == 1}
    assert {20, 40, 60} <= listed <= {20, 40, 50, 60}  # a newer one may come to stand before the one before it is copied
    copied = {name for name in here if "/" in name and not (50 not in listed and "step_00000050" in name)}
    assert copied - {"checkpoints/latest"} <= there
    small = {name.partition(".")[2] for name in (each.removeprefix("model.files/") for each in there if each.startswith("model.files/"))}
    assert small == {name for name in here if "/" not in name}

    shutil.rmtree(world.base / "runs" / tag)
    third = finish(world, tag, store)  # the stage is done: its model is all that is fetched
    assert third.returncode == 0, third.stderr
    assert "already done" in third.stdout
    assert not (stage / "checkpoints").exists()
    assert (stage / "model/model.safetensors").read_bytes() == (world.base / "runs/no-mirror" / weights).read_bytes()


def test_a_run_that_is_stopped_ends_when_the_mirror_has_its_checkpoint(world: World, store: Store) -> None:
    process = start(world, "asked", store, "--save_every=-1", "--keep_every=-1", "--num_iterations=5000")
    until(process, "step    1/")
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 75, said
    (saved,) = (world.base / "runs/asked/base/checkpoints").glob("step_*")
    assert json.loads(store.fs.cat_file(f"{store.root}/asked/base/checkpoints/latest.json")) == {"checkpoint": saved.name}
    shutil.rmtree(world.base / "runs/asked")


def test_wrong_bytes_there_are_found_and_the_checkpoint_before_is_taken(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(str(tmp_path / "mirror"), {})
    assert finish(world, "rotten", store).returncode == 0
    (tmp_path / "mirror/rotten/base/model.json").unlink()
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "another node"))
    stage = StageDirectory("rotten", "base")
    stage.path.mkdir(parents=True)
    mirror = Mirror(store.url, stage.path.parent)

    latest = tmp_path / "mirror/rotten/base/checkpoints/latest.json"
    latest.write_text('{"checkpoint": "step_00000050"}')  # the run had gone back, and was killed before 60 was removed
    for _ in range(2):
        mirror.fetch(stage)
        assert list(standing(stage.checkpoints)) == [50]
    shutil.rmtree(stage.path)
    stage.path.mkdir()

    store.flip("rotten/base/checkpoints/step_00000060/__0_0.distcp")
    latest.write_text('{"checkp')
    mirror.fetch(stage)
    assert "the checksum of base/checkpoints/step_00000060/__0_0.distcp is not the one it was written with" in capsys.readouterr().err
    assert list(standing(stage.checkpoints)) == [50]
    assert (stage.checkpoints / "latest").read_text() == "step_00000050\n"

    shutil.rmtree(stage.path)
    stage.path.mkdir()
    for path in (tmp_path / "mirror/rotten/base/checkpoints").glob("step_*/__0_0.distcp"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="none is whole"):
        mirror.fetch(stage)
    (tmp_path / "mirror/rotten/base/checkpoints/step_00000020.json").write_text('{"inside": {"../../x": ""}, "beside": {}}')
    with pytest.raises(UserError, match="none is whole"):
        mirror.fetch(stage)
    assert "names files that lie elsewhere" in capsys.readouterr().err
    assert not standing(stage.checkpoints)


def test_a_mirror_that_fails_for_a_while_is_an_alert_and_training_goes_on(world: World, tmp_path: Path, unbroken: dict[int, float]) -> None:
    store = Store(str(tmp_path / "mirror"), {})
    run = start(world, "unlucky", store)
    until(run, "copied step_")
    shutil.rmtree(tmp_path / "mirror")
    (tmp_path / "mirror").write_text("a file in its place")
    until(run, "does not take what it is given")
    (tmp_path / "mirror").unlink()
    said, _ = run.communicate(timeout=200)
    assert run.returncode == 0, said
    assert "takes copies again" in said
    rows = [json.loads(line) for line in (world.base / "runs/unlucky/base/metrics.jsonl").read_text().splitlines()]
    (alert,) = [row["alert"] for row in rows if "alert" in row]
    assert f"the mirror {store.url} does not take" in alert
    assert {row["step"]: row["loss"] for row in rows if "loss" in row} == unbroken
    assert json.loads((tmp_path / "mirror/unlucky/base/checkpoints/latest.json").read_text()) == {"checkpoint": "step_00000060"}
    assert (tmp_path / "mirror/unlucky/base/model.json").exists()


def last_alerts(copying: mirroring.Mirroring) -> list[str]:
    """Let it end; what somebody should know of."""
    copying.end()
    while not copying.ended():
        pass
    return copying.alerts()


def a_stage(directory: Path, step: int = 10, text: str = "weights", **identity: object) -> StageDirectory:
    """The base stage of a run d2 under a base directory, with a checkpoint."""
    stage = StageDirectory("d2", "base")
    path = directory / "runs/d2/base/checkpoints" / f"step_{step:08d}"
    path.mkdir(parents=True)
    (path / "a").write_text(f"{text} {step}")
    (path / "b").write_text(f"state {step}")
    (path.parent / "latest").write_text(path.name)
    (path.parents[1] / "config.json").write_text(json.dumps({"identity": identity, "settings": {}}))
    (path.parents[1] / "metrics.jsonl").write_text(f"{step}\n")
    return stage


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty base directory, of this process."""
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "node"))
    (tmp_path / "node").mkdir()
    return tmp_path / "node"


def test_a_copier_that_is_killed_is_told_of_and_started_again(node: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirroring, "RETRY_S", (0.1,))
    stage = a_stage(node)
    copying = mirroring.Mirroring(stage.path, str(tmp_path / "mirror"), -1)
    copying._process.kill()
    copying._process.wait()
    time.sleep(0.2)
    (alert,) = copying.alerts()
    assert "has ended (-9); it is started again" in alert
    assert copying.alerts() == []
    copying._process.kill()
    copying._process.wait()
    assert last_alerts(copying) == []
    assert (tmp_path / "mirror/d2/base/checkpoints/step_00000010/a").read_text() == "weights 10"


def test_a_mirror_that_takes_nothing_for_long_is_an_alert(node: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirroring, "BEHIND_S", 0.2)
    monkeypatch.setattr(mirroring, "LOOK_AFTER_S", 0.0)
    stage = a_stage(node)
    os.mkfifo(tmp_path / "never")
    (stage.checkpoints / "step_00000010/c").symlink_to(tmp_path / "never")
    copying = mirroring.Mirroring(stage.path, str(tmp_path / "mirror"), -1)
    try:
        assert copying.alerts() == []
        time.sleep(0.3)
        (alert,) = copying.alerts()
    finally:
        copying.kill()
    assert "the last that it took is none" in alert


def test_what_a_library_prints_is_not_taken_for_news(node: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "from fsspec.implementations.local import LocalFileSystem as L\n"
        "put = L.put_file\n"
        "L.put_file = lambda *words, **more: (print('sending', flush=True), put(*words, **more))[1]\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    copying = mirroring.Mirroring(a_stage(node).path, str(tmp_path / "mirror"), -1)
    assert last_alerts(copying) == []
    assert (tmp_path / "mirror/d2/base/checkpoints/latest.json").exists()


def test_two_runs_of_one_name_do_not_take_each_others_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def put(stage: StageDirectory, step: int) -> None:
        Mirror(url, stage.path.parent).put_checkpoint(stage.checkpoints / f"step_{step:08d}", -1)

    url = str(tmp_path / "mirror")
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "a"))
    first = a_stage(tmp_path / "a", 900, seed=42)
    put(first, 900)
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "b"))
    second = a_stage(tmp_path / "b", 400, seed=43)
    open_mirror(url, second, {"seed": 43})
    assert "with seed 42, this one asks for 43" in capsys.readouterr().err
    assert (second.path / "metrics.jsonl").read_text() == "400\n"
    with pytest.raises(UserError, match="seed 42"):
        put(second, 400)
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "c"))
    third = StageDirectory("d2", "base")
    third.path.mkdir(parents=True)
    with pytest.raises(UserError, match="seed 42, this one asks for 43"):
        open_mirror(url, third, {"seed": 43})
    assert list(third.path.iterdir()) == []

    # The same run on, from an older checkpoint, while what is there could not be read.
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "d"))
    fourth = a_stage(tmp_path / "d", 500, seed=42)
    put(fourth, 500)
    assert (tmp_path / "mirror/d2/base/checkpoints/step_00000900.json").exists()
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "c"))
    open_mirror(url, third, {"seed": 42})
    assert list(standing(third.checkpoints)) == [500]


def test_a_fetch_that_is_killed_at_its_end_is_done_again(node: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nanochat.common import files

    url = str(tmp_path / "mirror")
    stage = a_stage(node, 900)
    mirror = Mirror(url, stage.path.parent)
    mirror.put_checkpoint(stage.checkpoints / "step_00000900", -1)
    shutil.rmtree(node)
    a_stage(node, 400)
    publish = files.publish

    def killed(aside: Path, path: Path) -> None:
        if path.name == "step_00000900":
            raise KeyboardInterrupt
        publish(aside, path)

    monkeypatch.setattr(files, "publish", killed)
    with pytest.raises(KeyboardInterrupt):
        mirror.fetch(stage)
    monkeypatch.setattr(files, "publish", publish)
    assert list(standing(stage.checkpoints)) == [400]
    mirror.fetch(stage)
    assert list(standing(stage.checkpoints)) == [400, 900]
    assert (stage.checkpoints / "latest").read_text() == "step_00000900\n"


def test_a_faulty_link_loses_only_what_was_on_its_way(node: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nanochat.train import mirror as module

    monkeypatch.setattr(module, "WAIT_S", 0.0)
    stage = a_stage(node, 10)
    mirror = Mirror(str(tmp_path / "mirror"), stage.path.parent)
    sent: list[str] = []
    put_file, get_file = mirror.fs.put_file, mirror.fs.get_file

    def put_once_in_two(path: str, remote: str) -> None:
        sent.append(Path(path).name)
        if len(sent) == 2:
            raise TimeoutError
        put_file(path, remote)

    def get_once_in_two(remote: str, path: str) -> None:
        sent.append(Path(remote).name)
        if len(sent) % 2:
            raise TimeoutError
        get_file(remote, path)

    monkeypatch.setattr(mirror.fs, "put_file", put_once_in_two)
    monkeypatch.setattr(mirror.fs, "get_file", get_once_in_two)
    path = stage.checkpoints / "step_00000010"
    with pytest.raises(TimeoutError):
        mirror.put_checkpoint(path, -1)
    mirror.put_checkpoint(path, -1)
    assert sent == ["a", "b", "b"]

    # Begun again, its rows have grown: what is listed there stays whole at every moment.
    (stage.path / "metrics.jsonl").write_text("more\n")
    monkeypatch.setattr(mirror, "_put_json", lambda remote, value: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        mirror.put_checkpoint(path, -1)
    sent.clear()
    shutil.rmtree(node)
    stage.path.mkdir(parents=True)
    mirror.fetch(stage)
    assert (path / "a").read_text() == "weights 10"
    assert (stage.path / "metrics.jsonl").read_text() == "10\n"


def test_what_was_removed_there_is_sent_again(node: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = a_stage(node, 10)
    path = stage.checkpoints / "step_00000010"
    mirror = Mirror(str(tmp_path / "mirror"), stage.path.parent)
    put_json = mirror._put_json
    with monkeypatch.context() as patch:
        patch.setattr(mirror, "_put_json", lambda remote, value: 1 / 0 if "step_" in remote else put_json(remote, value))
        with pytest.raises(ZeroDivisionError):
            mirror.put_checkpoint(path, -1)
    for _ in range(2):  # of a copy that was not yet listed, and of one that was
        shutil.rmtree(tmp_path / "mirror")
        mirror.put_checkpoint(path, -1)
        assert (tmp_path / "mirror/d2/base/checkpoints/step_00000010/a").read_text() == "weights 10"
        assert len(list((tmp_path / "mirror/d2/base/checkpoints/step_00000010.files").iterdir())) == 2


def test_models_come_in_the_order_of_their_stages_and_only_their_files(node: Path, tmp_path: Path) -> None:
    for name in ("base", "mid", "sft", "rl"):
        model = node / "runs/d2" / name / "model"
        (model / ".cache").mkdir(parents=True)
        (model / "config.json").write_text(name)
    Mirror(str(tmp_path / "mirror"), node / "runs/d2").put_models()
    shutil.rmtree(node / "runs")
    mirror_command.mirror(mirror_command.MirrorSettings("d2", str(tmp_path / "mirror"), fetch=True))
    assert find_model(("base", "mid", "sft", "rl")).parent.name == "rl"


def test_a_checkpoint_is_not_held_for_a_copy_that_was_killed(node: Path) -> None:
    stage = a_stage(node)
    (stage.checkpoints / "copied").write_text("step_00000010")
    with stage.locked():
        assert not (stage.checkpoints / "copied").exists()


def test_at_the_end_it_is_not_waited_for_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirroring, "GIVE_UP_S", 1.0)
    (tmp_path / "runs/d2/base/model").mkdir(parents=True)
    (tmp_path / "runs/d2/base/model/config.json").write_text("{}")
    (tmp_path / "mirror").write_text("a file in its place")
    copying = mirroring.Mirroring(tmp_path / "runs/d2/base", str(tmp_path / "mirror"), -1)
    failing, lacking = last_alerts(copying)
    assert "does not take what it is given" in failing
    assert "lacks the end of d2 base" in lacking


def test_an_address_that_neither_fails_nor_ends_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirroring, "CLOSE_S", 3.0)
    (tmp_path / "runs/d2/base/model").mkdir(parents=True)
    os.mkfifo(tmp_path / "mirror")  # whoever opens it waits for ever
    (tmp_path / "runs/d2/base/model/config.json").symlink_to(tmp_path / "mirror")
    copying = mirroring.Mirroring(tmp_path / "runs/d2/base", str(tmp_path / "there"), -1)
    (alert,) = last_alerts(copying)
    assert "is not waited for" in alert


def test_a_run_is_given_and_fetched_by_hand(world: World, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "mirror").write_text("a file in its place")
    mirror = str(tmp_path / "mirror")
    wrong_request(world.run("scripts.mirror", "--model_tag=trained", f"--checkpoint_mirror={mirror}"), "fails", mirror)
    wrong_request(world.run("scripts.mirror", "--model_tag=trained"), "no mirror is named")
    wrong_request(world.run("scripts.mirror", "--model_tag=never", f"--checkpoint_mirror={mirror}"), "there is no run")
    (tmp_path / "mirror").unlink()
    given = world.run("scripts.mirror", "--model_tag=trained", CHECKPOINT_MIRROR=mirror)
    assert given.returncode == 0, given.stderr
    other = World(tmp_path / "another node")
    other.base.mkdir()
    fetched = other.run("scripts.mirror", "--model_tag=trained", "--fetch", CHECKPOINT_MIRROR=mirror)
    assert fetched.returncode == 0, fetched.stderr
    for path in trained.iterdir():
        assert (other.base / "runs/trained/base/model" / path.name).read_bytes() == path.read_bytes()
    assert other.losses("trained") == world.losses("trained")
    for path in (world.base / "tokenizer").glob("*/*"):
        assert (other.base / path.relative_to(world.base)).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nowhere://bucket", "Protocol not known: nowhere"),
        ("gs://bucket/path", "gcsfs"),
        ("/proc/nowhere", "cannot be used"),
    ],
)
def test_an_address_that_cannot_be_used_is_told_of_before_anything_is_done(world: World, url: str, words: str) -> None:
    wrong_request(world.run("scripts.base_train", *FLAGS, "--model_tag=wrong", f"--checkpoint_mirror={url}"), url, words)


def test_where_a_run_goes_on_the_mirror_may_fail(world: World, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "mirror"), {})
    first = start(world, "going", store)
    until(first, "saved ")
    first.kill()
    first.communicate()
    shutil.rmtree(tmp_path / "mirror", ignore_errors=True)
    (tmp_path / "mirror").write_text("a file in its place")
    again = start(world, "going", store)
    until(again, "the run goes on from what is here")
    (tmp_path / "mirror").unlink()
    said, _ = again.communicate(timeout=200)
    assert again.returncode == 0, said
    assert (tmp_path / "mirror/going/base/model.json").exists()
