"""The one downloader: a file arrives whole and as published, however the network behaves, or one line says why not.

It is streamed to a file aside, goes on by Range where it broke off, is held against its size and digest, and takes its name last.
"""

import contextlib
import dataclasses
import email.utils
import functools
import glob
import hashlib
import os
import random
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from nanochat.common.console import say
from nanochat.common.errors import UserError
from nanochat.common.files import fsync_path, remove

if TYPE_CHECKING:
    import httpx

CHUNK_BYTES = 1 << 20
MOST_REDIRECTS = 10
WRONG_CONTENTS = 3  # arrivals of a whole file that is not the published one, before that is said
LONGEST_WAIT_S = 60.0
LONGEST_RETRY_AFTER_S = 600.0
SLOWEST_BYTES_PER_S = 1_000
PROGRESS_BYTES = 1 << 20  # an attempt that brings as much was none in vain
MOST_DOUBLINGS = 20
PROXIES = ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY")
TRANSIENT = {408, 425, 429}
FEW_WORDS = {401: "it wants to know who asks", 403: "it does not let you", 404: "there is no such file", 410: "the file is gone"}

DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")

T = TypeVar("T")


class DownloadError(UserError):
    """A file that could not be had: the message names the address, the attempts and the last reason."""

    def __init__(self, message: str, status: int = 0, code: str = ""):
        """status: the HTTP status of a refusal, else 0; code: what the hub calls the refusal (`RevisionNotFound`)."""
        super().__init__(message)
        self.status, self.code = status, code


@dataclasses.dataclass(frozen=True)
class Patience:
    """How long a download is tried; every figure can be set in the environment, as `NANOCHAT_DOWNLOAD_FIRST_WAIT_S`."""

    attempts: int = 6
    """attempts in a row that bring less than a MiB, before it gives up"""
    first_wait_s: float = 1.0
    """seconds before the second attempt; doubled before each further one"""
    silence_s: float = 20.0
    """seconds without a byte, or at less than a thousand bytes a second, before a connection is given up"""

    @classmethod
    def set(cls) -> "Patience":
        """The patience that the environment asks for. Raises UserError for a value that is no number above zero."""
        found: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            name = f"NANOCHAT_DOWNLOAD_{field.name.upper()}"
            if text := os.environ.get(name):
                try:
                    found[field.name] = (int if field.name == "attempts" else float)(text)
                except ValueError:
                    found[field.name] = 0
                if not found[field.name] > 0:
                    raise UserError(f"{name}={text}: must be a number above zero")
        return cls(**found)

    def wait_s(self, failures: int) -> float:
        """Seconds to wait after so many failures in a row, some more or less: many who fail alike do not come back together."""
        return min(LONGEST_WAIT_S, self.first_wait_s * 2 ** min(failures - 1, MOST_DOUBLINGS)) * random.uniform(0.75, 1.25)


@dataclasses.dataclass(frozen=True)
class Published:
    """What is known beforehand of a file."""

    size: int | None = None
    """bytes"""
    digest: str = ""
    """64 hexadecimal digits: SHA-256 of its bytes; 40: git's SHA-1 of them as a blob; empty: unknown"""

    def wrong(self, path: Path) -> str:
        """What is wrong with a file that should be this one, in a few words; empty where it is as published."""
        size = path.stat().st_size
        if self.size is not None and size != self.size:
            return f"it has {size:,} bytes, {self.size:,} are published"
        if self.digest and digest_of(path, len(self.digest)) != self.digest:
            return "its checksum is not the published one"
        return ""


def digest_of(path: Path, digits: int) -> str:
    """A file's digest as the hub writes it: of 64 hexadecimal digits its SHA-256, of 40 git's SHA-1 of it as a blob."""
    with path.open("rb") as file:
        if digits == 64:
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
        return digest.hexdigest()


def fetch(
    url: str,
    path: Path,
    published: Published = Published(),
    headers: dict[str, str] | None = None,
    wrong: Callable[[Path], str] = lambda path: "",
) -> int:
    """Download a file; its size in bytes. What stands at `path` is replaced when the new file is whole and as published.

    A file whose digest is known goes on, after a kill too, where it broke off. `wrong` says of a whole file what is wrong with it where
    no digest tells. One process at a time may fetch to a path. Raises DownloadError when it cannot be had, OSError for the disk's errors.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{published.digest[:16] or 'new'}.part")
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        if left != aside or not published.digest:
            remove(left)
    body = _Body(url, aside, published, headers or {})
    try:
        for arrival in range(1, WRONG_CONTENTS + 1):
            _patiently(url, body.read_on, body.bytes_here)
            reason = published.wrong(aside) or wrong(aside)
            if not reason:
                fsync_path(aside)
                aside.replace(path)
                fsync_path(path.parent)
                return path.stat().st_size
            remove(aside)
            if arrival < WRONG_CONTENTS:
                say(f"{url} arrived wrong ({reason}): fetching it again")
        raise DownloadError(f"{url} arrived wrong {WRONG_CONTENTS} times ({reason})")
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


class _TryAgainError(Exception):
    """An answer that may be another one the next time."""

    def __init__(self, reason: str, wait_s: float = 0.0):
        super().__init__(reason)
        self.wait_s = wait_s


class _Body:
    """A file that is read on from what is on disk of it."""

    def __init__(self, url: str, aside: Path, published: Published, headers: dict[str, str]):
        self.url, self.aside, self.published, self.headers = url, aside, published, headers
        self._etag = ""
        self._total = published.size

    def bytes_here(self) -> int:
        """Bytes of it that are on disk."""
        return self.aside.stat().st_size if self.aside.exists() else 0

    def read_on(self) -> None:
        """One attempt to bring what is missing. Raises _TryAgainError when it broke off."""
        have = self.bytes_here()
        tells_apart = self.published.digest or self._etag  # else nothing would say that the file is another one by now
        if have and (not tells_apart or (self._total is not None and have > self._total)):
            remove(self.aside)
            have = 0
        if have and have == self._total:
            return
        asked = {**self.headers, "Accept-Encoding": "identity"}
        if have:
            asked["Range"] = f"bytes={have}-"
            if self._etag:
                asked["If-Range"] = self._etag
        with _client(Patience.set().silence_s).stream("GET", self.url, headers=asked) as reply:
            if reply.status_code == 416:
                remove(self.aside)
                raise _TryAgainError("what is here of it does not belong to it")
            _check_status(self.url, reply)
            self._take(reply, have)

    def _take(self, reply: "httpx.Response", have: int) -> None:
        etag = reply.headers.get("ETag", "")
        goes_on = reply.status_code == 206
        if goes_on:
            place = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", reply.headers.get("Content-Range", ""))
            total = int(place[2]) if place and place[2] != "*" else self._total
            changed = (self._etag and etag != self._etag) or (self._total is not None and total != self._total)
            if not place or int(place[1]) != have or changed:
                remove(self.aside)
                self._etag, self._total = "", self.published.size
                raise _TryAgainError("it changed, or the server went on elsewhere: beginning anew")
        else:
            length = reply.headers.get("Content-Length", "")
            total = int(length) if length.isdigit() else None
        self._etag = "" if etag.startswith("W/") else etag
        self._total = self.published.size if self.published.size is not None else total
        window, came = time.monotonic(), 0
        silence_s = Patience.set().silence_s
        with self.aside.open("ab" if goes_on else "wb") as file:
            for chunk in reply.iter_raw():
                file.write(chunk)
                came += len(chunk)
                if (passed := time.monotonic() - window) > silence_s:
                    if came < SLOWEST_BYTES_PER_S * passed:
                        raise _TryAgainError(f"it came at {came / passed:.0f} bytes a second")
                    window, came = time.monotonic(), 0
            size = file.tell()
        if total is not None and size < total:
            raise _TryAgainError(f"it broke off after {size:,} of {total:,} bytes")


def ask(method: str, url: str, headers: dict[str, str] | None = None, silence_s: float = 0.0, attempts: int = 0) -> "httpx.Response":
    """The answer to a request without a body; redirects to other hosts are answers. It is waited for `silence_s` seconds, and where
    nobody answers tried `attempts` times, by default as for a download. Raises DownloadError when none comes, or a refusal."""

    def once() -> "httpx.Response":
        place = url
        for _ in range(MOST_REDIRECTS):
            reply = _client(silence_s or Patience.set().silence_s).request(method, place, headers=headers, follow_redirects=False)
            if not (place := _moved_within(reply)):
                break
        if not reply.is_redirect:
            _check_status(url, reply)
        return reply

    return _patiently(url, once, lambda: 0, attempts)


def _moved_within(reply: "httpx.Response") -> str:
    """Where a redirect on the same host leads; empty for any other answer, also for one that tells of a file whose bytes are elsewhere."""
    if not reply.has_redirect_location:
        return ""
    here, place = reply.url, reply.url.join(reply.headers["Location"])
    is_within = (place.host, place.port) == (here.host, here.port) and place.scheme in (here.scheme, "https")
    is_answer = "X-Linked-Etag" in reply.headers and "://" in reply.headers["Location"]
    return str(place) if is_within and not is_answer else ""


def _patiently(url: str, attempt: Callable[[], T], progress: Callable[[], int], attempts: int = 0) -> T:
    """The result of `attempt`, made again after growing waits when the network or the server fails for the moment.

    `progress` says how many bytes have come: attempts that brought a MiB do not count. Where nobody answers there are
    `attempts`, by default as many as of others. Raises DownloadError.
    """
    import httpx

    patience, failures = Patience.set(), 0
    while True:
        before = progress()
        try:
            return attempt()
        except UnicodeEncodeError as error:
            raise DownloadError(f"{url} cannot be asked for: what is sent along is not ASCII ({error}); is HF_TOKEN right?") from None
        except (httpx.HTTPError, httpx.InvalidURL, _TryAgainError) as error:
            failures = 1 if progress() - before >= PROGRESS_BYTES else failures + 1
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            hopeless = isinstance(error, httpx.UnsupportedProtocol | httpx.InvalidURL)
            most = patience.attempts if isinstance(error, _TryAgainError) else attempts or patience.attempts
            if hopeless or failures >= most:
                raise DownloadError(f"{url} cannot be fetched, after {failures} attempt{'s' * (failures > 1)}: {reason}") from None
            wait_s = max(patience.wait_s(failures), error.wait_s if isinstance(error, _TryAgainError) else 0.0)
            say(f"{url}: {reason}; trying again in {wait_s:.0f} s")
            time.sleep(wait_s)


def _check_status(url: str, reply: "httpx.Response") -> None:
    """Raises DownloadError for a refusal, _TryAgainError for an answer that may be another one later."""
    status = reply.status_code
    if status < 300:
        return
    if status >= 500 or status in TRANSIENT:
        raise _TryAgainError(f"HTTP {status}", min(_asked_wait_s(reply), LONGEST_RETRY_AFTER_S))
    why = FEW_WORDS.get(status, "the server refuses")
    raise DownloadError(f"{url} cannot be fetched: HTTP {status}, {why}", status, reply.headers.get("X-Error-Code", ""))


def _asked_wait_s(reply: "httpx.Response") -> float:
    """Seconds that the server asks to wait: Retry-After as seconds or as a time by the server's own clock, or the hub's RateLimit."""
    asked = reply.headers.get("Retry-After", "").strip()
    if asked.isdigit():
        return float(asked)
    with contextlib.suppress(TypeError, ValueError):
        until, now = (email.utils.parsedate_to_datetime(text) for text in (asked, reply.headers.get("Date", "")))
        return max(0.0, (until - now).total_seconds())
    found = re.search(r"\bt=(\d+)", reply.headers.get("RateLimit", ""))
    return float(found[1]) if found else 0.0


@functools.cache
def _client(silence_s: float) -> "httpx.Client":
    """One client for all threads; it keeps connections, and sends what proves who asks to the host that was asked alone."""
    import httpx

    try:
        return httpx.Client(timeout=silence_s, follow_redirects=True)
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        proxies = ", ".join(name for name in PROXIES if os.environ.get(name) or os.environ.get(name.lower()))
        raise DownloadError(
            f"the proxy that the environment asks for ({proxies}) cannot be used: {error}; set an http:// one, or none"
        ) from None
