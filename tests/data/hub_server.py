"""A server on this machine that answers downloads as the hub does, and can be made to fail as the hub and networks do."""

import collections
import contextlib
import hashlib
import http.server
import re
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any

from tests.local_server import running

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """What the server holds and how it misbehaves."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        """contents by name, the same in every dataset repository"""
        self.unavailable = 0
        """how many of the next requests are answered with 503"""
        self.faults: dict[str, list[str | int]] = {}
        """what goes wrong with the next downloads of a file, one after the other: an HTTP status, or a method of Handler"""
        self.always: dict[str, str | int] = {}
        """what goes wrong with every download of a file"""
        self.retry_after = ""
        """what is said along with a status"""
        self.ranges: list[str] = []
        """the Range of every download, empty where the whole was asked for"""
        self.over = threading.Event()
        """nobody waits any more"""
        self.key = ""
        """what a request must bring, where anything"""
        self.gone: set[str] = set()
        """revisions that do not exist any more"""
        self.requests: list[tuple[str, str, str]] = []
        """method, revision and file of every request"""
        self.endpoint = ""

    def downloads(self) -> collections.Counter[str]:
        """How often each file was asked for."""
        return collections.Counter(file for method, _, file in self.requests if method == "GET")


def etag(content: bytes) -> str:
    """As the hub names a large file."""
    return f'"{hashlib.sha256(content).hexdigest()}"'


@contextlib.contextmanager
def serve() -> Iterator[Hub]:
    """A running server; `endpoint` is what HF_ENDPOINT is to be."""
    hub = Hub()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def answer(self, with_body: bool) -> None:
            match = re.fullmatch(r"/datasets/[\w-]+/[\w-]+/resolve/(\w+)/([\w.-]+)", self.path)
            if match is None:  # the client library asks for other things of its own
                return self.plain(404)
            revision, name = match.groups()
            hub.requests.append((self.command, revision, name))
            if hub.unavailable:
                hub.unavailable -= 1
                return self.plain(503)
            if hub.key and self.headers.get("Authorization") != f"Bearer {hub.key}":
                return self.plain(401)
            if revision in hub.gone:
                return self.plain(404, {"X-Error-Code": "RevisionNotFound"})
            if name not in hub.files:
                return self.plain(404, {"X-Error-Code": "EntryNotFound"})
            content = hub.files[name]
            if not with_body:
                return self.head(200, content, len(content))
            hub.ranges.append(self.headers.get("Range", ""))
            fault = hub.faults[name].pop(0) if hub.faults.get(name) else hub.always.get(name, "nothing")
            if isinstance(fault, int):
                return self.plain(fault, {"Retry-After": hub.retry_after} if hub.retry_after else None)
            start = int(found[1]) if (found := re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))) else 0
            if self.headers.get("If-Range", etag(content)) != etag(content):
                start = 0
            return getattr(self, fault)(content, start)

        def head(self, status: int, content: bytes, size: int, start: int = 0) -> None:
            self.send_response(status)
            if status == 206:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", etag(content))
            self.send_header("Content-Length", str(size))
            self.end_headers()

        def nothing(self, content: bytes, start: int) -> None:
            """Nothing goes wrong."""
            self.head(206 if start else 200, content, len(content) - start, start)
            self.wfile.write(content[start:])

        def cut(self, content: bytes, start: int) -> None:
            """The connection is closed in the middle."""
            self.head(206 if start else 200, content, len(content) - start, start)
            self.wfile.write(content[start : (start + len(content)) // 2])
            self.close_connection = True

        def reset(self, content: bytes, start: int) -> None:
            """The connection is reset in the middle."""
            self.head(206 if start else 200, content, len(content) - start, start)
            self.wfile.write(content[start : (start + len(content)) // 2])
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True

        def short(self, content: bytes, start: int) -> None:
            """Half of it, as if it were all."""
            self.head(200, content, len(content) // 2)
            self.wfile.write(content[: len(content) // 2])

        def wrong(self, content: bytes, start: int) -> None:
            """As many bytes, but one is another."""
            self.nothing(bytes([content[0] ^ 1]) + content[1:], 0)

        def page(self, content: bytes, start: int) -> None:
            """A page for people, which says that something is wrong, as if all were well."""
            self.nothing(b"<html><body>We will be back soon.</body></html>", 0)

        def no_range(self, content: bytes, start: int) -> None:
            """The whole of it, whatever part was asked for."""
            self.nothing(content, 0)

        def elsewhere(self, content: bytes, start: int) -> None:
            """Another part than the one that was asked for."""
            self.nothing(content, max(start - 10, 0))

        def silent(self, content: bytes, start: int) -> None:
            """No answer."""
            hub.over.wait(30)
            self.close_connection = True

        def stalled(self, content: bytes, start: int) -> None:
            """Half of it, and nothing more."""
            self.head(206 if start else 200, content, len(content) - start, start)
            self.wfile.write(content[start : (start + len(content)) // 2])
            self.silent(content, start)

        def drip(self, content: bytes, start: int) -> None:
            """A byte now and then."""
            self.head(206 if start else 200, content, len(content) - start, start)
            with contextlib.suppress(OSError):
                for byte in content[start:]:
                    self.wfile.write(bytes([byte]))
                    if hub.over.wait(0.02):
                        break
            self.close_connection = True

        def plain(self, status: int, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for key, value in {"Content-Length": "0", **(headers or {})}.items():
                self.send_header(key, value)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    with running(Handler) as hub.endpoint:
        yield hub
        hub.over.set()
