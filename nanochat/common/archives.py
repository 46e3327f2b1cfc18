"""Zips from elsewhere: unpacked into one directory and never outside it, plain files only, no more than was expected."""

import errno
import shutil
import stat
import unicodedata
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from nanochat.common.errors import UserError

PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # the others of zipfile's are read by other libraries, which is no need here
NAME_BYTES = 255
DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, OverflowError, NotImplementedError)  # in zipfile's words


def unzip(archive: Path, into: Path, most_bytes: int, most_members: int) -> None:
    """Unpack a zip into a new directory, every byte held against its checksum.

    Members may be plain files and directories under relative paths, each once, also where case does not tell names apart; together at
    most `most_bytes`, and `most_members` of them. Raises UserError, naming the member, for anything else and for damage; what is
    wrong with a name, a kind or a size is found before anything is written.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = opened.infolist()
            _check(archive, members, most_bytes, most_members)
            into.mkdir()
            for member in members:
                place = into / PurePosixPath(member.filename)
                if member.is_dir():
                    place.mkdir(parents=True, exist_ok=True)
                    continue
                place.parent.mkdir(parents=True, exist_ok=True)
                with opened.open(member) as packed, place.open("xb") as file:
                    shutil.copyfileobj(packed, file)
    except (*DAMAGE, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # that of looking for a member where no file has a place
            raise
        raise UserError(f"{archive} is no whole zip ({error}): fetch it again") from None


def _check(archive: Path, members: list[zipfile.ZipInfo], most_bytes: int, most_members: int) -> None:
    if len(members) > most_members:
        raise UserError(f"{archive} has {len(members):,} members; {most_members:,} are taken at most")
    if sum(member.file_size for member in members) > most_bytes:
        raise UserError(f"{archive} unpacks to more than {most_bytes / 1e9:.3g} GB")
    files: set[PurePosixPath] = set()
    directories: set[PurePosixPath] = set()
    for member in members:
        if wrong := _wrong_member(member):
            raise UserError(f"{archive}: the member {member.filename[:100]!r} {wrong}: it was not unpacked")
        path = PurePosixPath(unicodedata.normalize("NFC", member.filename).casefold())
        if path in files or (path in directories and not member.is_dir()) or not files.isdisjoint(path.parents):
            raise UserError(f"{archive}: the member {member.filename[:100]!r} is there twice: it was not unpacked")
        directories |= set(path.parents)
        (directories if member.is_dir() else files).add(path)


def _wrong_member(member: zipfile.ZipInfo) -> str:
    """What keeps a member from being unpacked; empty where nothing does."""
    name, kind = member.filename, stat.S_IFMT(member.external_attr >> 16)
    parts = name.removesuffix("/").split("/")
    if name.startswith("/") or "\\" in name or ":" in parts[0]:
        return "has a path of its own"
    if ".." in parts or "." in parts or "" in parts:
        return "leads elsewhere"
    if not name.isprintable() or len(name.encode()) > NAME_BYTES:
        return "has a name that is too long or cannot be printed"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR) or (kind == stat.S_IFDIR and not member.is_dir()):
        return "is a link or a device"
    if member.flag_bits & 1:
        return "is encrypted"
    if member.compress_type not in PACKINGS:
        return "is packed in a way that no bundle is"
    return ""
