"""Zips from elsewhere: an honest one comes out whole, a hostile one leaves nothing anywhere."""

import contextlib
import errno
import stat
import struct
import warnings
import zipfile
from pathlib import Path

import pytest

from nanochat.common.archives import unzip
from nanochat.common.errors import UserError

MOST_BYTES, MOST_MEMBERS = 100_000, 20

Member = tuple[str | zipfile.ZipInfo, bytes]


def special(name: str, kind: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (kind | 0o777) << 16
    return info


def packed(path: Path, members: list[Member]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a name that is there already
        for name, content in members:
            archive.writestr(name, content)
    return path


HOSTILE: dict[str, tuple[list[Member], str]] = {
    "above": ([("../outside", b"x")], "leads elsewhere"),
    "far above": ([("a/../../../outside", b"x")], "leads elsewhere"),
    "above and back": ([("a/../b", b"x")], "leads elsewhere"),
    "the root": ([("/outside", b"x")], "a path of its own"),
    "a drive": ([("C:/outside", b"x")], "a path of its own"),
    "backslashes": ([("..\\outside", b"x")], "a path of its own"),
    "a root within": ([("a//outside", b"x")], "leads elsewhere"),
    "a link": ([(special("a", stat.S_IFLNK), b"/etc/passwd")], "link or a device"),
    "a file through a link": ([(special("a", stat.S_IFLNK), b".."), ("a/outside", b"x")], "link or a device"),
    "a device": ([(special("a", stat.S_IFBLK), b"")], "link or a device"),
    "a pipe": ([(special("a", stat.S_IFIFO), b"")], "link or a device"),
    "a socket": ([(special("a", stat.S_IFSOCK), b"")], "link or a device"),
    "twice": ([("a", b"x"), ("a", b"y")], "twice"),
    "twice but for case": ([("a", b"x"), ("A", b"y")], "twice"),
    "twice but for accents": ([("\u00e9", b"x"), ("e\u0301", b"y")], "twice"),
    "a file and a directory": ([("a", b"x"), ("a/b", b"y")], "twice"),
    "a directory and a file": ([("a/b", b"x"), ("a", b"y")], "twice"),
    "a long name": ([("a" * 300, b"x")], "too long"),
    "a name that moves the cursor": ([("a\x1b[2J", b"x")], "cannot be printed"),
    "a bomb": ([("a", bytes(MOST_BYTES + 1))], "more than"),
    "a bomb in parts": ([(f"a{number}", bytes(MOST_BYTES // 3)) for number in range(4)], "more than"),
    "many": ([(f"a{number}", b"") for number in range(MOST_MEMBERS + 1)], "21 members"),
}


@pytest.mark.parametrize("what", HOSTILE)
@pytest.mark.parametrize("first", [[], [("honest", b"x")]], ids=["alone", "after an honest one"])
def test_a_hostile_zip_is_refused_and_leaves_nothing(what: str, first: list[Member], tmp_path: Path) -> None:
    members, word = HOSTILE[what]
    place = tmp_path / "here" / "below"
    place.parent.mkdir()
    archive = packed(tmp_path / "archive.zip", [*first, *members][: MOST_MEMBERS + 1])
    with pytest.raises(UserError, match=word):
        unzip(archive, place, MOST_BYTES, MOST_MEMBERS)
    assert sorted(tmp_path.rglob("*")) == [archive, place.parent]


def test_a_member_that_says_it_is_smaller_than_it_is_ends_in_an_error(tmp_path: Path) -> None:
    archive = packed(tmp_path / "archive.zip", [("a", bytes(2 * MOST_BYTES))])
    size = (2 * MOST_BYTES).to_bytes(4, "little")
    said = archive.read_bytes()
    assert said.count(size) == 2  # of the member and of the list
    archive.write_bytes(said.replace(size, (10).to_bytes(4, "little")))
    with pytest.raises(UserError, match="no whole zip"):
        unzip(archive, tmp_path / "place", MOST_BYTES, MOST_MEMBERS)
    assert (tmp_path / "place/a").stat().st_size <= 10


def test_an_encrypted_one_is_refused(tmp_path: Path) -> None:
    archive = packed(tmp_path / "archive.zip", [("a", b"x")])
    said = bytearray(archive.read_bytes())
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        said[said.index(mark) + at] |= 1
    archive.write_bytes(said)
    with pytest.raises(UserError, match="encrypted"):
        unzip(archive, tmp_path / "place", MOST_BYTES, MOST_MEMBERS)


def test_an_honest_one_comes_out_whole_with_plain_permissions(tmp_path: Path) -> None:
    members: list[Member] = [
        ("a/", b""),
        ("a/b", b"1"),
        ("c.é", b"2" * 1000),
        ("d/e/f", b""),
        (special("tool", stat.S_IFREG | stat.S_ISUID), b"3"),
    ]
    unzip(packed(tmp_path / "archive.zip", members), tmp_path / "place", MOST_BYTES, MOST_MEMBERS)
    found = {str(path.relative_to(tmp_path / "place")): path.read_bytes() for path in (tmp_path / "place").rglob("*") if path.is_file()}
    assert found == {"a/b": b"1", "c.é": b"2" * 1000, "d/e/f": b"", "tool": b"3"}
    assert (tmp_path / "place/tool").stat().st_mode & (stat.S_ISUID | 0o111) == 0


@pytest.mark.parametrize("size", [2**32 - 2, 2**62, 2**64 - 1])
def test_a_list_of_members_where_no_file_has_a_place_is_damage(tmp_path: Path, size: int) -> None:
    archive = tmp_path / "archive.zip"
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, size, 0)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, 0, 1)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, 2**32 - 1, 2**32 - 1, 0)
    archive.write_bytes(end64 + locator + end)
    with pytest.raises(UserError, match=r"archive\.zip is no whole zip"):
        unzip(archive, tmp_path / "place", MOST_BYTES, MOST_MEMBERS)


@pytest.mark.parametrize("byte", [0, 1, 0x7F, 0xFF])
def test_a_zip_with_a_wrong_byte_is_whole_or_damaged_and_nothing_else(tmp_path: Path, byte: int) -> None:
    archive = packed(tmp_path / "archive.zip", [("a", b"words " * 9), ("b/c", b"more")])
    whole = archive.read_bytes()
    for place in range(len(whole)):
        archive.write_bytes(whole[:place] + bytes([byte]) + whole[place + 1 :])
        with contextlib.suppress(UserError), warnings.catch_warnings(action="ignore"):
            unzip(archive, tmp_path / f"{place}", MOST_BYTES, MOST_MEMBERS)


def test_an_error_of_the_disk_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def copy(packed: object, file: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr("shutil.copyfileobj", copy)
    with pytest.raises(OSError, match="full"):
        unzip(packed(tmp_path / "archive.zip", [("a", b"words")]), tmp_path / "place", MOST_BYTES, MOST_MEMBERS)
