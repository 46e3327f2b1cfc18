"""A server on this machine that answers downloads as the hub does, and can be made to fail as the hub and networks do."""

import collections
import contextlib
import hashlib
import http.server
import re
from collections.abc import Iterator
from typing import Any

from tests.local_server import running

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """What the server holds and how it misbehaves."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        """contents by name, the same in every dataset repository"""
        self.next_broken: dict[str, bytes] = {}
        """contents that the next complete download of a file gets instead"""
        self.unavailable = 0
        """how many of the next requests are answered with 503"""
        self.cut: set[str] = set()
        """files whose next download breaks off in the middle"""
        self.gone: set[str] = set()
        """revisions that do not exist any more"""
        self.requests: list[tuple[str, str, str]] = []
        """method, revision and file of every request"""
        self.endpoint = ""

    def downloads(self) -> collections.Counter[str]:
        """How often each file was asked for."""
        return collections.Counter(file for method, _, file in self.requests if method == "GET")


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
            if revision in hub.gone:
                return self.plain(404, {"X-Error-Code": "RevisionNotFound"})
            if name not in hub.files:
                return self.plain(404, {"X-Error-Code": "EntryNotFound"})
            content = hub.next_broken.get(name, hub.files[name])
            if with_body:
                hub.next_broken.pop(name, None)
            start = int(found[1]) if (found := re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))) else 0
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            if with_body and name in hub.cut:
                hub.cut.remove(name)
                self.wfile.write(content[start : start + (len(content) - start) // 2])
                self.close_connection = True
            elif with_body:
                self.wfile.write(content[start:])
            return None

        def plain(self, status: int, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for key, value in {"Content-Length": "0", **(headers or {})}.items():
                self.send_header(key, value)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    with running(Handler) as hub.endpoint:
        yield hub
