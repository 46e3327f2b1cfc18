"""As much of wandb's server as its client needs to begin a run and send its rows: GraphQL, and the stream of files."""

import contextlib
import gzip
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.local_server import running

RUN = {
    "id": "1",
    "name": "run",
    "displayName": "run",
    "config": "{}",
    "project": {"id": "2", "name": "nanochat", "entity": {"id": "3", "name": "somebody"}},
    "historyLineCount": 0,
}
ANSWERS = {
    "RunResumeStatus": {"model": {"name": "nanochat", "entity": {"name": "somebody"}, "bucket": None}},
    "UpsertBucket": {"upsertBucket": {"bucket": RUN, "inserted": True}},
}


@dataclass
class WandbServer:
    """What has come in."""

    url: str = ""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """Rows of the run's history."""
    operations: list[str] = field(default_factory=list)
    """GraphQL operations, by name."""
    down: threading.Event = field(default_factory=threading.Event)
    """While set every request is refused with 503."""


@contextlib.contextmanager
def wandb_server() -> Iterator[WandbServer]:
    """A server that answers."""
    server = WandbServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            if server.down.is_set():
                return self.answer(503, {})
            if self.path.startswith("/upload") or body[:1] != b"{":
                return self.answer(200, {})
            asked = json.loads(body or b"{}")
            if self.path == "/graphql":
                name = asked.get("operationName") or ""
                server.operations.append(name)
                if name == "CreateRunFiles":
                    files = [{"name": file, "uploadUrl": f"{server.url}/upload"} for file in asked["variables"]["files"]]
                    return self.answer(200, {"data": {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": files}}})
                return self.answer(200, {"data": ANSWERS.get(name, {})})
            lines = ((asked.get("files") or {}).get("wandb-history.jsonl") or {}).get("content") or []
            server.rows += [json.loads(line) for line in lines]
            return self.answer(200, {"exitcode": None, "limits": {}})

        def do_GET(self) -> None:
            self.answer(404, {})

        def handle(self) -> None:
            with contextlib.suppress(OSError):  # a client that was killed
                super().handle()

        do_PUT = do_POST  # noqa: N815

        def answer(self, status: int, value: Any) -> None:
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    with running(Handler) as server.url:
        yield server


@contextlib.contextmanager
def silent_server() -> Iterator[str]:
    """The address of a server that takes connections and never says a word."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
