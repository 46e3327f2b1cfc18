"""A copy of a run off its node: at any address that fsspec knows, an object store's or the hub's, so that a new node can go on from it.

Under URL/TAG/STAGE lie `checkpoints/step_N/` and `model/`, each with the stage's small files of its time in `step_N.files/` and
`model.files/`, and a list of all these with their SHA-256, `step_N.json` and `model.json`, which is written when they are all there.
`checkpoints/latest.json` names the newest checkpoint, last of all.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from nanochat.common.checksums import read_checksums
from nanochat.common.console import say, warn
from nanochat.common.errors import UserError
from nanochat.common.files import atomic_path, sha256_file
from nanochat.train.checkpoint_directory import LATEST_FILE, kept_steps, standing
from nanochat.train.run_directory import StageDirectory

TRIES = 3
NOT_COPIED = {"again"}


def one_line(error: BaseException) -> str:
    """An error's kind and message in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


class _WrongBytesError(Exception):
    pass


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
        return sorted(str(each["name"]).rstrip("/").rsplit("/", 1)[-1] for each in found if each["type"] == "directory")

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

    def put_directory(self, path: Path, stage: Path) -> None:
        """Copy a directory of a stage that is complete, and the stage's small files, as far as they are not there as they are now."""
        known = read_checksums(path)
        inside = {each.name: known.get(each.name) or sha256_file(each) for each in sorted(path.iterdir())}
        small = {
            each.name: each.read_bytes()
            for each in sorted(stage.iterdir())
            if each.is_file() and not each.name.startswith(".") and each.name not in NOT_COPIED
        }
        beside = {name: hashlib.sha256(data).hexdigest() for name, data in small.items()}
        remote = self._at(path)
        there = self._json(f"{remote}.json") or {}
        if there == {"inside": inside, "beside": beside}:
            return
        self.fs.makedirs(remote, exist_ok=True)
        self.fs.makedirs(f"{remote}.files", exist_ok=True)
        for name, digest in inside.items():
            if there.get("inside", {}).get(name) != digest:
                self.fs.put_file(str(path / name), f"{remote}/{name}")
        for name, data in small.items():
            if there.get("beside", {}).get(name) != beside[name]:
                self.fs.pipe_file(f"{remote}.files/{name}", data)
        self._put_json(f"{remote}.json", {"inside": inside, "beside": beside})

    def put_checkpoint(self, path: Path, keep_every: int) -> None:
        """Copy the newest checkpoint and point at it; then those that are kept for good, where they are not there yet; then remove those
        that are not kept."""
        stage = path.parent.parent
        self.put_directory(path, stage)
        remote, newest = self._at(path.parent), int(path.name[-8:])
        self._put_json(f"{remote}/latest.json", {"checkpoint": path.name})
        for step, older in standing(path.parent).items():
            if step < newest and keep_every > 0 and step % keep_every == 0 and f"{older.name}.json" not in self._names(remote):
                self.put_directory(older, stage)
        names = self._names(remote)
        steps = {int(match[1]) for name in names if (match := re.fullmatch(r"step_(\d{8})", name))}
        for step in steps - kept_steps(steps, newest, keep_every):
            gone = f"{remote}/step_{step:08d}"
            if f"step_{step:08d}.json" in names:
                self.fs.rm(f"{gone}.json")  # first: from now on it does not count
            for each in (gone, f"{gone}.files"):
                if each.rsplit("/", 1)[-1] in names:
                    self.fs.rm(each, recursive=True)

    def put_models(self) -> None:
        """Copy the models of all stages that are finished, with what has been measured of them."""
        for model in sorted(self.run.glob("*/model")):
            self.put_directory(model, model.parent)

    def _get(self, remote: str, path: Path, digest: str) -> None:
        for _ in range(TRIES):
            self.fs.get_file(remote, str(path))
            if sha256_file(path) == digest:
                return
        raise _WrongBytesError(f"the checksum of {remote.removeprefix(self.root + '/')} is not the one it was written with")

    def _fetch_directory(self, path: Path, stage: Path) -> bool:
        """Fetch a directory of a stage to where it belongs, and the stage's small files; False, after a warning, where it is not whole."""
        remote = self._at(path)
        listed = self._json(f"{remote}.json") or {}
        try:
            inside, beside = dict(listed["inside"]), dict(listed["beside"])
            if any(Path(name).name != name for name in (*inside, *beside)):
                raise _WrongBytesError(f"{path.name}.json names files that lie elsewhere")
            with atomic_path(path) as aside:
                aside.mkdir()
                for name, digest in inside.items():
                    self._get(f"{remote}/{name}", aside / name, digest)
                for name, digest in beside.items():
                    with atomic_path(stage / name) as small:
                        self._get(f"{remote}.files/{name}", small, digest)
        except (KeyError, TypeError, ValueError):
            warn(f"{self.url}: the list {path.name}.json is damaged; it is not taken")
            return False
        except (_WrongBytesError, FileNotFoundError) as error:
            warn(f"{self.url}: {error}; it is not taken")
            return False
        say(f"fetched {path} from {self.url}")
        return True

    def fetch(self, stage: StageDirectory) -> None:
        """Bring a stage to where it stands there, where that is further than here. The stage's directory must be this process's.

        Raises UserError when what is there cannot be read whole and nothing is here.
        """
        if stage.model.exists():
            return
        remote = self._at(stage.path)
        if self._json(f"{remote}/model.json") is not None and self._fetch_directory(stage.model, stage.path):
            return
        names = self._names(f"{remote}/checkpoints")
        steps = sorted((name.removesuffix(".json") for name in names if re.fullmatch(r"step_\d{8}\.json", name)), reverse=True)
        latest = (self._json(f"{remote}/checkpoints/latest.json") or {}).get("checkpoint")
        here = max((path.name for path in standing(stage.checkpoints).values()), default="")
        if latest in steps:  # later ones are of a past that the run has gone back before
            steps = [name for name in steps if name <= latest]
        for name in steps:
            if name > here and self._fetch_directory(stage.checkpoints / name, stage.path):
                with atomic_path(stage.checkpoints / LATEST_FILE) as aside:
                    aside.write_text(name + "\n", encoding="utf-8")
                say("the run goes on from there; to begin anew choose another --model_tag")
                return
        if steps and not here:
            raise UserError(
                f"{self.url} has checkpoints of {stage.tag} {stage.stage}, and none is whole: to begin anew choose another --model_tag"
            )


def open_mirror(url: str, stage: StageDirectory) -> None:
    """Before a stage begins: try the address, and fetch what it has beyond what is here.

    Raises UserError when it cannot be used and nothing of the stage is here; where a run goes on, that is only warned of.
    """
    if stage.model.exists():
        return
    run = stage.path.parent
    try:
        mirror = Mirror(url, run)
        mirror.probe()
        try:
            mirror.fetch(stage)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{url}: what it has of {stage.tag} {stage.stage} cannot be fetched ({one_line(error)})") from None
    except UserError as error:
        if not standing(stage.checkpoints):
            raise
        warn(f"{error}; the run goes on from what is here")
