"""Digests of files, kept beside them in `checksums.json`; and a memory of which files were held against theirs and are unchanged since."""

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from nanochat.common.download import DIGEST, digest_of
from nanochat.common.files import read_json, write_json
from nanochat.common.paths import base_path

CHECKSUMS_FILE = "checksums.json"
THREADS = 4
CANNOT_BE_READ = {errno.EIO, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}
"""What a file's disk or its name answers, rather than who may read it or how much this process has open."""


def read_checksums(directory: Path) -> dict[str, str]:
    """Digests by file name, as `write_checksums` has left them; empty where there are none, or none that can be read.

    The list may come from elsewhere: what is no digest, or not of a file below the directory, is not taken.
    """
    try:
        found = read_json(directory / CHECKSUMS_FILE)["sha256"]
        return {name: digest for name, digest in found.items() if _is_below(name) and DIGEST.fullmatch(digest)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def write_checksums(directory: Path, checksums: Mapping[str, str], **more: str) -> None:
    """Keep digests by file name beside the files, and what else is to be known of them."""
    write_json(directory / CHECKSUMS_FILE, {**more, "sha256": dict(sorted(checksums.items()))})


def wrong_files(directory: Path, expected: Mapping[str, str]) -> dict[str, str]:
    """What is wrong with each of these files of a directory that is not as its digest says, in a few words.

    A file is read once; after that only when it has changed since, by size, time of change or place on disk.
    """
    memory = _Memory(directory)

    def check(name: str) -> str:
        path = directory / name
        try:
            if not stat.S_ISREG(path.stat().st_mode):  # a device has no end, a pipe no beginning
                return "it is no plain file"
            stamp = _stamp(path, expected[name])
            if memory.knows(name, stamp):
                return ""
            if digest_of(path, len(expected[name])) != expected[name]:
                return "its checksum is not the one it was written with"
        except FileNotFoundError:
            return "it is not there"
        except OSError as error:
            if error.errno not in CANNOT_BE_READ:
                raise
            return f"it cannot be read ({error.strerror})"
        memory.learn(name, stamp)
        return ""

    with ThreadPoolExecutor(THREADS) as pool:
        reasons = dict(zip(expected, pool.map(check, expected), strict=True))
    memory.keep()
    return {name: reason for name, reason in reasons.items() if reason}


def wrong_file(path: Path) -> str:
    """As wrong_files, of one file and what `checksums.json` beside it says; empty where that says nothing of it."""
    digest = read_checksums(path.parent).get(path.name)
    return wrong_files(path.parent, {path.name: digest}).get(path.name, "") if digest else ""


def remember(path: Path, digest: str) -> None:
    """Take a file for one that was held against its digest: who calls it has just done so."""
    memory = _Memory(path.parent)
    memory.learn(path.name, _stamp(path, digest))
    memory.keep()


def _is_below(name: str) -> bool:
    """Whether this is the name of a file below the directory that it is looked for in."""
    parts = PurePosixPath(name).parts
    return bool(parts) and parts[0] != "/" and ".." not in parts and name.isprintable()


def _stamp(path: Path, digest: str) -> list[Any]:
    """What changes when a file does. Its time of change, unlike that of its content, cannot be set back."""
    status = path.stat()
    return [status.st_size, status.st_ctime_ns, status.st_ino, digest]


class _Memory:
    """The stamps of files of one directory that were right. It lies under the base directory: the files' own may be read-only."""

    def __init__(self, directory: Path):
        name = hashlib.sha256(os.fsencode(directory.resolve())).hexdigest()[:16]
        self.path = base_path() / "verified" / f"{name}.json"
        self._known: dict[str, list[Any]] = {}
        self._new: dict[str, list[Any]] = {}
        with contextlib.suppress(OSError, ValueError):
            found = read_json(self.path)
            self._known = found if isinstance(found, dict) else {}

    def knows(self, name: str, stamp: list[Any]) -> bool:
        """Whether the file was right, and has had this stamp."""
        return self._known.get(name) == stamp

    def learn(self, name: str, stamp: list[Any]) -> None:
        """The file is right."""
        self._new[name] = stamp

    def keep(self) -> None:
        """Write down what was learnt; where that cannot be, files are read again the next time."""
        if self._new:
            with contextlib.suppress(OSError):
                write_json(self.path, self._known | self._new)
