"""A copy of a run off its node: at any address that fsspec knows, an object store's or the hub's, so that a new node can go on from it.

Under URL/TAG/STAGE lie `checkpoints/step_N/` and `model/`, each with the stage's small files of its time in `step_N.files/` and
`model.files/`, under names that begin with their digests, and a list of all these with their SHA-256, `step_N.json` and `model.json`,
which is written when they are all there. `checkpoints/latest.json` names the newest checkpoint, last of all. `identity.json` says what
run it is, and `URL/TAG/tokenizer/NAME` is its tokenizer, without which a checkpoint means nothing.
"""

import hashlib
import json
import re
import time
from pathlib import Path
from typing import Any

from nanochat.common.checksums import read_checksums
from nanochat.common.console import say, warn
from nanochat.common.errors import UserError
from nanochat.common.files import atomic_path, read_json, sha256_file
from nanochat.common.paths import tokenizer_dir
from nanochat.model.find import make_newest
from nanochat.train.checkpoint_directory import LATEST_FILE, kept_steps, standing
from nanochat.train.run_directory import StageDirectory, difference, identity_of

TRIES = 3
WAIT_S = 2.0
"""Seconds before a file is asked for again."""
NOT_COPIED = {"again"}
TOKENIZER = "tokenizer"
IDENTITY = "identity.json"


def one_line(error: BaseException) -> str:
    """An error's kind and message in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


class _WrongBytesError(Exception):
    pass


def _beside(name: str, digest: str) -> str:
    """The name of a stage's small file there: one that changes does not take the place of one that is listed."""
    return f"{digest[:12]}.{name}"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Mirror:
    """What an address holds of one run. Its methods raise whatever the address's own library does."""

    def __init__(self, url: str, run: Path):
        """url: as fsspec knows it, or a path; run: the run's directory, whose name is its own at the address.

        Raises UserError for an address that cannot be opened.
        """
        import fsspec
        from fsspec.core import url_to_fs

        try:
            self.fs, root = url_to_fs(url)
        except ImportError as error:
            raise UserError(f"--checkpoint_mirror={url}: {one_line(error)} (of version {fsspec.__version__}, as fsspec)") from None
        except Exception as error:
            raise UserError(f"--checkpoint_mirror={url} cannot be opened ({one_line(error)})") from None
        self.url, self.run, self.root = url, run, f"{root.rstrip('/')}/{run.name}"
        self._there: dict[str, str] = {}
        """Digest of each file that was put there of a directory that is not listed yet, so that a failure does not send it again."""

    def _at(self, path: Path) -> str:
        return f"{self.root}/{path.relative_to(self.run).as_posix()}"

    def _names(self, remote: str) -> list[str]:
        """Names of what lies in a directory there; none where it is not."""
        self.fs.invalidate_cache()
        try:
            return sorted(str(each).rstrip("/").rsplit("/", 1)[-1] for each in self.fs.ls(remote, detail=False))
        except FileNotFoundError:
            return []

    def _put_json(self, remote: str, value: Any) -> None:
        self.fs.makedirs(remote.rsplit("/", 1)[0], exist_ok=True)
        self.fs.pipe_file(remote, (json.dumps(value) + "\n").encode())

    def _put(self, remote: str, digest: str, content: Path | bytes) -> None:
        self.fs.invalidate_cache()
        if self._there.get(remote) != digest or not self.fs.exists(remote):
            if isinstance(content, bytes):
                self.fs.pipe_file(remote, content)
            else:
                self.fs.put_file(str(content), remote)
            self._there[remote] = digest

    def _json(self, remote: str) -> dict[str, Any] | None:
        """A JSON object there; None where there is none, or only a part of one."""
        self.fs.invalidate_cache()
        try:
            value = json.loads(self.fs.cat_file(remote))
        except (FileNotFoundError, ValueError):
            return None
        return value if isinstance(value, dict) else None

    def stages(self) -> list[str]:
        """Names of the stages that are there."""
        self.fs.invalidate_cache()
        try:
            found = self.fs.ls(self.root, detail=True)
        except FileNotFoundError:
            return []
        names = {str(each["name"]).rstrip("/").rsplit("/", 1)[-1] for each in found if each["type"] == "directory"}
        return sorted(names - {TOKENIZER})

    def probe(self) -> None:
        """Write a file, read it again and remove it. Raises UserError where that cannot be done."""
        remote = f"{self.root}/probe.json"
        try:
            self._put_json(remote, {"probe": 1})
            if self._json(remote) != {"probe": 1}:
                raise OSError("what was written is not what is read")
            self.fs.rm(remote)
        except Exception as error:
            raise UserError(f"--checkpoint_mirror={self.url} cannot be used ({one_line(error)})") from None

    def _compare(self, stage: Path, ours: dict[str, Any] | None) -> bool:
        """Whether what is there of a stage is this run's; False where nothing says whose it is. Raises UserError where it is another's."""
        theirs = self._json(f"{self._at(stage)}/{IDENTITY}")
        if theirs and ours and (differing := difference(theirs, ours)):
            raise UserError(f"{self.url} holds a run {self.run.name} {stage.name} {differing}: choose another --model_tag or address")
        return theirs is not None

    def _claim(self, stage: Path) -> None:
        """Say whose the stage is there. Raises UserError where it is another run's."""
        ours = identity_of(stage)
        if not self._compare(stage, ours) and ours:
            self._put_json(f"{self._at(stage)}/{IDENTITY}", ours)

    def _put_directory(self, path: Path, remote: str, stage: Path | None) -> None:
        """Copy a directory that is complete, as far as it is not there as it is now, and of `stage` the small files."""
        known = read_checksums(path)
        inside = {each.name: known.get(each.name) or sha256_file(each) for each in sorted(path.iterdir()) if not each.is_dir()}
        there = self._json(f"{remote}.json") or {}
        if there.get("inside") == inside and path.name != "model":
            return  # with the small files of its time
        small = {
            each.name: each.read_bytes()
            for each in (sorted(stage.iterdir()) if stage else ())
            if each.is_file() and not each.name.startswith(".") and each.name not in NOT_COPIED
        }
        beside = {name: _digest(data) for name, data in small.items()}
        if there == {"inside": inside, "beside": beside}:
            return
        self.fs.makedirs(remote, exist_ok=True)
        self.fs.makedirs(f"{remote}.files", exist_ok=True)
        for name, digest in inside.items():
            if there.get("inside", {}).get(name) != digest:
                self._put(f"{remote}/{name}", digest, path / name)
        for name, data in small.items():
            if there.get("beside", {}).get(name) != beside[name]:
                self._put(f"{remote}.files/{_beside(name, beside[name])}", beside[name], data)
        self._put_json(f"{remote}.json", {"inside": inside, "beside": beside})
        self._there.clear()
        listed = {_beside(name, digest) for name, digest in beside.items()}
        for name in self._names(f"{remote}.files"):
            if name not in listed:
                self.fs.rm(f"{remote}.files/{name}")

    def put_directory(self, path: Path) -> None:
        """Copy a checkpoint or the model of a stage, and the stage's small files, as far as they are not there as they are now."""
        stage = self.run / path.relative_to(self.run).parts[0]
        self._put_directory(path, self._at(path), stage)

    def put_tokenizer(self) -> None:
        """Copy the run's tokenizer, where it is not there."""
        manifest = self.run / "base/manifest.json"
        if manifest.is_file() and (directory := tokenizer_dir(str(read_json(manifest)["tokenizer"]))).is_dir():
            self._put_directory(directory, f"{self.root}/{TOKENIZER}/{directory.name}", None)

    def fetch_tokenizer(self) -> None:
        """Fetch the run's tokenizer, where there is none of its name here."""
        for name in self._names(f"{self.root}/{TOKENIZER}"):
            directory = tokenizer_dir(name)
            if not name.endswith((".json", ".files")) and not directory.exists():
                self._fetch_directory(directory, f"{self.root}/{TOKENIZER}/{name}", None)

    def put_checkpoint(self, path: Path, keep_every: int) -> None:
        """Copy the newest checkpoint and point at it; then those that are kept for good, where they are not there yet; then remove those
        that are not kept."""
        self._claim(path.parent.parent)
        self.put_tokenizer()
        self.put_directory(path)
        remote, newest = self._at(path.parent), int(path.name[-8:])
        self._put_json(f"{remote}/latest.json", {"checkpoint": path.name})
        for step, older in standing(path.parent).items():
            if step < newest and keep_every > 0 and step % keep_every == 0 and f"{older.name}.json" not in self._names(remote):
                self.put_directory(older)
        names = self._names(remote)
        # Later ones are of a past that the run has gone back before: they do not count, and give way as it comes to their steps.
        steps = {int(match[1]) for name in names if (match := re.fullmatch(r"step_(\d{8})", name)) and int(match[1]) <= newest}
        for step in steps - kept_steps(steps, newest, keep_every):
            gone = f"{remote}/step_{step:08d}"
            if f"step_{step:08d}.json" in names:
                self.fs.rm(f"{gone}.json")  # first: from now on it does not count
            for each in (gone, f"{gone}.files"):
                if each.rsplit("/", 1)[-1] in names:
                    self.fs.rm(each, recursive=True)

    def put_models(self) -> None:
        """Copy the models of all stages that are finished, with what has been measured of them."""
        self.put_tokenizer()
        for model in sorted(self.run.glob("*/model")):
            self._claim(model.parent)
            self.put_directory(model)

    def _get(self, remote: str, path: Path, digest: str) -> None:
        for left in reversed(range(TRIES)):
            try:
                self.fs.get_file(remote, str(path))
                if sha256_file(path) == digest:
                    return
            except FileNotFoundError:
                raise
            except OSError:
                if not left:
                    raise
                time.sleep(WAIT_S)
        raise _WrongBytesError(f"the checksum of {remote.removeprefix(self.root + '/')} is not the one it was written with")

    def _fetch_directory(self, path: Path, remote: str, stage: Path | None) -> bool:
        """Fetch a directory to where it belongs, and into `stage` its small files; False, after a warning, where it is not whole."""
        listed = self._json(f"{remote}.json") or {}
        try:
            inside, beside = dict(listed["inside"]), dict(listed["beside"])
            if any(Path(name).name != name for name in (*inside, *beside)):
                raise _WrongBytesError(f"{path.name}.json names files that lie elsewhere")
            with atomic_path(path) as aside:
                aside.mkdir()
                for name, digest in inside.items():
                    self._get(f"{remote}/{name}", aside / name, digest)
                for name, digest in beside.items() if stage else ():
                    with atomic_path(stage / name) as small:
                        self._get(f"{remote}.files/{_beside(name, digest)}", small, digest)
                if re.fullmatch(r"step_\d{8}", path.name):  # first: while it names nothing that stands, the newest that does is taken
                    with atomic_path(path.parent / LATEST_FILE) as pointer:
                        pointer.write_text(path.name + "\n", encoding="utf-8")
        except (KeyError, TypeError, ValueError):
            warn(f"{self.url}: the list {path.name}.json is damaged; it is not taken")
            return False
        except (_WrongBytesError, FileNotFoundError) as error:
            warn(f"{self.url}: {error}; it is not taken")
            return False
        say(f"fetched {path} from {self.url}")
        return True

    def fetch(self, stage: StageDirectory, identity: dict[str, Any] | None = None) -> None:
        """Bring a stage to where it stands there, where that is further than here. The stage's directory must be this process's.

        identity: what the run is; what its directory says where that is not given.

        Raises UserError when what is there cannot be read whole and nothing is here, and when it is of another run.
        """
        if stage.model.exists():
            return
        self._compare(stage.path, identity or identity_of(stage.path))
        self.fetch_tokenizer()
        remote = self._at(stage.path)
        if self._json(f"{remote}/model.json") is not None and self._fetch_directory(stage.model, self._at(stage.model), stage.path):
            make_newest(stage.model)
            return
        names = self._names(f"{remote}/checkpoints")
        steps = sorted((name.removesuffix(".json") for name in names if re.fullmatch(r"step_\d{8}\.json", name)), reverse=True)
        latest = (self._json(f"{remote}/checkpoints/latest.json") or {}).get("checkpoint")
        here = max((path.name for path in standing(stage.checkpoints).values()), default="")
        if latest in steps:  # later ones are of a past that the run has gone back before
            steps = [name for name in steps if name <= latest]
        for name in steps:
            path = stage.checkpoints / name
            if name > here and self._fetch_directory(path, self._at(path), stage.path):
                say("the run goes on from there; to begin anew choose another --model_tag")
                return
        if steps and not here:
            raise UserError(
                f"{self.url} has checkpoints of {stage.tag} {stage.stage}, and none is whole: to begin anew choose another --model_tag"
            )


def open_mirror(url: str, stage: StageDirectory, identity: dict[str, Any]) -> None:
    """Before a stage of that identity begins: try the address, and fetch what it has beyond what is here.

    Raises UserError when it cannot be used and nothing of the stage is here; where a run goes on, that is only warned of.
    """
    if stage.model.exists():
        return
    run = stage.path.parent
    try:
        mirror = Mirror(url, run)
        mirror.probe()
        try:
            mirror.fetch(stage, identity)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{url}: what it has of {stage.tag} {stage.stage} cannot be fetched ({one_line(error)})") from None
    except UserError as error:
        if not standing(stage.checkpoints):
            raise
        warn(f"{error}; the run goes on from what is here")
