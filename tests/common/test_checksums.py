"""Files held against their checksums: what was flipped is named, what did not change is not read again."""

import errno
import hashlib
import json
import os
from pathlib import Path

import pytest

from nanochat.common import checksums
from nanochat.common.checksums import read_checksums, write_checksums, wrong_file, wrong_files

WORDS = {name: f"words of {name}".encode() * 100 for name in ("a.bin", "b.bin")}


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    (tmp_path / "files").mkdir()
    for name, words in WORDS.items():
        (tmp_path / "files" / name).write_bytes(words)
    write_checksums(tmp_path / "files", {name: hashlib.sha256(words).hexdigest() for name, words in WORDS.items()})
    return tmp_path / "files"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were read."""
    names: list[str] = []
    real = checksums.digest_of
    monkeypatch.setattr(checksums, "digest_of", lambda path, digits: (names.append(path.name), real(path, digits))[1])
    return names


def test_a_file_is_read_once_and_again_when_it_changes(directory: Path, read: list[str]) -> None:
    for _ in range(2):
        assert wrong_files(directory, read_checksums(directory)) == {}
    assert sorted(read) == ["a.bin", "b.bin"]
    (directory / "a.bin").write_bytes(WORDS["a.bin"])
    assert wrong_files(directory, read_checksums(directory)) == {}
    assert sorted(read) == ["a.bin", "a.bin", "b.bin"]


def test_a_flipped_bit_is_found_though_size_and_time_are_as_they_were(directory: Path) -> None:
    path = directory / "b.bin"
    assert wrong_file(path) == ""
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(7)
        file.write(bytes([WORDS["b.bin"][7] ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    for _ in range(2):
        assert wrong_files(directory, read_checksums(directory)) == {"b.bin": "its checksum is not the one it was written with"}


def test_a_file_that_is_not_there(directory: Path) -> None:
    (directory / "a.bin").unlink()
    assert wrong_files(directory, read_checksums(directory)) == {"a.bin": "it is not there"}


def test_another_digest_is_not_taken_for_the_known_one(directory: Path) -> None:
    assert wrong_file(directory / "a.bin") == ""
    assert wrong_files(directory, {"a.bin": "0" * 64})


@pytest.mark.parametrize("memory", ["", "[]", "{", '{"a.bin": 1}'])
def test_a_memory_that_is_damaged_or_cannot_be_kept_costs_reading_only(directory: Path, read: list[str], memory: str) -> None:
    assert wrong_files(directory, read_checksums(directory)) == {}
    (kept,) = (directory.parent / "base/verified").iterdir()
    kept.write_text(memory)
    assert wrong_file(directory / "a.bin") == ""
    kept.unlink()
    kept.parent.rmdir()
    kept.parent.write_text("a file where the directory should be")
    assert wrong_file(directory / "a.bin") == ""
    assert read.count("a.bin") == 3


FOREIGN = ("/dev/zero", "../b.bin", "a/../../b.bin", "/", "", ".", "a\0b", "\ud800")


@pytest.mark.parametrize("name", FOREIGN)
def test_a_list_from_elsewhere_leads_nowhere_else(directory: Path, name: str) -> None:
    listed = {name: "0" * 64, "a.bin": hashlib.sha256(WORDS["a.bin"]).hexdigest(), "b.bin": "no digest"}
    (directory / "checksums.json").write_text(json.dumps({"sha256": listed}))
    assert list(read_checksums(directory)) == ["a.bin"]
    assert wrong_files(directory, read_checksums(directory)) == {}


def test_what_is_no_plain_file_is_not_read(directory: Path) -> None:
    (directory / "endless").symlink_to("/dev/zero")
    os.mkfifo(directory / "pipe")
    (directory / "below").mkdir()
    names = ("endless", "pipe", "below", "a.bin/below", "c" * 300)
    wrong = wrong_files(directory, dict.fromkeys(names, "0" * 64))
    assert wrong == {
        **dict.fromkeys(names[:3], "it is no plain file"),
        "a.bin/below": "it cannot be read (Not a directory)",
        "c" * 300: "it cannot be read (File name too long)",
    }


def test_what_the_hubs_client_keeps_is_read_through_its_links(directory: Path) -> None:
    digest = hashlib.sha256(WORDS["a.bin"]).hexdigest()
    (directory / "blobs").mkdir()
    (directory / "a.bin").rename(directory / "blobs" / digest)
    snapshot = directory / "snapshots/commit"
    snapshot.mkdir(parents=True)
    (snapshot / "a.bin").symlink_to(f"../../blobs/{digest}")
    assert wrong_files(snapshot, {"a.bin": digest}) == {}
    (directory / "blobs" / digest).write_bytes(b"damaged")
    assert wrong_files(snapshot, {"a.bin": digest}) == {"a.bin": "its checksum is not the one it was written with"}


def test_a_bad_sector_is_a_damage_of_that_file(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(path: Path, digits: int) -> str:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(checksums, "digest_of", read)
    number = errno.EIO
    assert wrong_file(directory / "a.bin") == "it cannot be read (Input/output error)"
    number = errno.EACCES
    with pytest.raises(PermissionError):
        wrong_file(directory / "a.bin")


@pytest.mark.parametrize("damaged", ["", "[]", '{"sha256": 3}', '{"other": {}}'])
def test_checksums_that_cannot_be_read_are_none(directory: Path, damaged: str) -> None:
    (directory / "checksums.json").write_text(damaged)
    assert read_checksums(directory) == {}
    assert wrong_file(directory / "a.bin") == ""
