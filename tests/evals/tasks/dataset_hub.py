"""A server on this machine that serves datasets as the hub does: what the `datasets` client asks for, and nothing else."""

import contextlib
import fnmatch
import hashlib
import http.server
import itertools
import json
import re
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.local_server import running

COMMIT = "89abcdef0123456789abcdef0123456789abcdef"


@contextlib.contextmanager
def serve(root: Path, damaged: list[str] | None = None, busy: dict[int, int] | None = None) -> Iterator[str]:
    """Serve `root/OWNER/NAME/…` as dataset repositories; yields what HF_ENDPOINT is to be.

    A file whose name is in `damaged` is sent with a wrong byte, each time that it stands there once; requests are answered
    with the statuses of `busy`, by their number.
    """

    numbers = itertools.count()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def do_POST(self) -> None:
            size = int(self.headers.get("Content-Length", "0"))
            asked = urllib.parse.parse_qs(self.rfile.read(size).decode()) if size else {}
            if found := re.fullmatch(r"/api/datasets/([\w-]+/[\w.-]+)/paths-info/[^/]+", self.path.split("?")[0]):
                wanted = asked.get("paths", [])
                return self.json([entry for entry in entries(found[1]) if entry["path"] in wanted])
            return self.plain(404)

        def answer(self, with_body: bool) -> None:
            if status := (busy or {}).get(next(numbers)):
                return self.plain(status, {"Retry-After": "0"})
            path, _, query = self.path.partition("?")
            path = urllib.parse.unquote(path)
            if path == "/":
                return self.json({})
            if found := re.fullmatch(r"/api/datasets/([\w-]+/[\w.-]+?)(?:/revision/[^/]+)?", path):
                if not (root / found[1]).is_dir():
                    return self.plain(404, {"X-Error-Code": "RepoNotFound"})
                siblings = [{"rfilename": entry["path"]} for entry in entries(found[1]) if entry["type"] == "file"]
                return self.json({"id": found[1], "sha": COMMIT, "private": False, "tags": [], "siblings": siblings, "downloads": 0})
            if found := re.fullmatch(r"/api/datasets/([\w-]+/[\w.-]+)/tree/[^/]+(?:/(.*))?", path):
                inside = (found[2] or "").rstrip("/")
                deep = "recursive=true" in query.lower()
                pattern = f"{inside}/*" if inside else "*"
                listed = [e for e in entries(found[1]) if fnmatch.fnmatch(e["path"], pattern)]
                shown = [e for e in listed if deep or "/" not in e["path"].removeprefix(f"{inside}/" if inside else "")]
                return self.json(shown) if shown or not inside else self.plain(404, {"X-Error-Code": "EntryNotFound"})
            if found := re.fullmatch(r"/datasets/([\w-]+/[\w.-]+)/resolve/[^/]+/(.+)", path):
                if not (root / found[1]).is_dir():
                    return self.plain(404, {"X-Error-Code": "RepoNotFound"})
                file = root / found[1] / found[2]
                if not file.is_file():
                    return self.plain(404, {"X-Error-Code": "EntryNotFound"})
                content = file.read_bytes()
                start = int(part[1]) if (part := re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))) else 0
                self.send_response(206 if start else 200)
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
                self.send_header("Content-Length", str(len(content) - start))
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
                self.end_headers()
                if with_body and found[2] in (damaged or ()):
                    damaged.remove(found[2])
                    at = len(content) // 3
                    content = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
                if with_body:
                    self.wfile.write(content[start:])
                return None
            return self.plain(404)

        def json(self, value: Any) -> None:
            content = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def plain(self, status: int, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for key, value in {"Content-Length": "0", **(headers or {})}.items():
                self.send_header(key, value)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    def entries(repo: str) -> list[dict[str, Any]]:
        out: list[dict[str, Any]] = []
        for path in sorted((root / repo).rglob("*")):
            name = path.relative_to(root / repo).as_posix()
            oid = hashlib.sha1(name.encode()).hexdigest()
            kind = {"type": "directory"} if path.is_dir() else {"type": "file", "size": path.stat().st_size}
            out.append({"path": name, "oid": oid, "size": 0, **kind})
        return out

    with running(Handler) as endpoint:
        yield endpoint
