"""A server on this machine that holds model repositories as the hub does: what `huggingface_hub` asks to fetch and to put there."""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.local_server import running

COMMIT = "fedcba9876543210fedcba9876543210fedcba98"


@dataclass
class ModelHub:
    """What the server holds."""

    endpoint: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Files by repository and name."""
    private: dict[str, bool] = field(default_factory=dict)
    token: str = "hf_right"
    """Who brings it may write."""
    revisions: set[str] = field(default_factory=set)
    """Those that were asked for."""
    damaged: list[str] = field(default_factory=list)
    """Files that are sent with a wrong byte, each time that they stand here once."""
    parts: dict[str, bytes] = field(default_factory=dict)
    """Large files by hash, until a commit takes them."""


@contextlib.contextmanager
def serve() -> Iterator[ModelHub]:
    """A running hub; `endpoint` is what HF_ENDPOINT is to be."""
    hub = ModelHub()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length", "0")))

        def do_HEAD(self) -> None:
            self.fetch(with_body=False)

        def do_GET(self) -> None:
            self.fetch(with_body=True)

        def fetch(self, with_body: bool) -> None:
            path = urllib.parse.unquote(self.path.partition("?")[0])
            if found := re.fullmatch(r"/api/models/([\w-]+/[\w.-]+?)(?:/(?:revision|tree)/([\w/]+?))?", path):
                if found[1] not in hub.repositories:
                    return self.json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
                files = hub.repositories[found[1]]
                hub.revisions.add(found[2] or "main")
                if "/tree/" in path:
                    return self.json([{"type": "file", "path": name, "size": len(data), "oid": "0" * 40} for name, data in files.items()])
                siblings = [{"rfilename": name} for name in files]
                return self.json({"id": found[1], "sha": COMMIT, "private": False, "tags": [], "siblings": siblings, "downloads": 0})
            if found := re.fullmatch(r"/([\w-]+/[\w.-]+)/resolve/[^/]+/(.+)", path):
                data = hub.repositories.get(found[1], {}).get(found[2])
                if data is None:
                    return self.json({}, 404, {"X-Error-Code": "EntryNotFound"})
                headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(data).hexdigest()}"'}
                if with_body and found[2] in hub.damaged:
                    hub.damaged.remove(found[2])
                    data = bytes([data[0] ^ 1]) + data[1:]
                return self.send(data, 200, headers, with_body)
            return self.json({}, 404)

        def do_POST(self) -> None:
            body = self.body()
            if self.headers.get("Authorization") != f"Bearer {hub.token}":
                return self.json({"error": "Invalid credentials in Authorization header"}, 401)
            if self.path == "/api/repos/create":
                asked = json.loads(body)
                name = f"{asked.get('organization') or 'me'}/{asked['name']}"
                hub.private[name] = asked["private"] if "private" in asked else asked.get("visibility") == "private"
                hub.repositories.setdefault(name, {})
                return self.json({"url": f"{hub.endpoint}/{name}", "name": name})
            if re.fullmatch(r"/api/models/[\w-]+/[\w.-]+/preupload/\w+", self.path):
                files = json.loads(body)["files"]
                kinds = [
                    {"path": one["path"], "uploadMode": "lfs" if one["path"].endswith(".safetensors") else "regular", "shouldIgnore": False}
                    for one in files
                ]
                return self.json({"files": kinds})
            if self.path.endswith(".git/info/lfs/objects/batch"):
                objects = json.loads(body)["objects"]
                actions = [{**one, "actions": {"upload": {"href": f"{hub.endpoint}/lfs/{one['oid']}"}}} for one in objects]
                return self.json({"transfer": "basic", "objects": actions}, kind="application/vnd.git-lfs+json")
            if found := re.fullmatch(r"/api/models/([\w-]+/[\w.-]+)/commit/\w+", self.path):
                for line in map(json.loads, body.splitlines()):
                    value = line["value"]
                    if line["key"] == "file":
                        hub.repositories[found[1]][value["path"]] = base64.b64decode(value["content"])
                    elif line["key"] == "lfsFile":
                        hub.repositories[found[1]][value["path"]] = hub.parts[value["oid"]]
                return self.json({"success": True, "commitOid": COMMIT, "commitUrl": f"{hub.endpoint}/{found[1]}/commit/{COMMIT}"})
            if self.path == "/api/validate-yaml":
                return self.json({"errors": [], "warnings": []})
            return self.json({}, 404)

        def do_PUT(self) -> None:
            data = self.body()
            oid = self.path.rsplit("/", 1)[1]
            assert hashlib.sha256(data).hexdigest() == oid
            hub.parts[oid] = data
            self.send(b"", 200, {}, True)

        def json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None, kind: str = "application/json") -> None:
            self.send(json.dumps(value).encode(), status, {"Content-Type": kind, **(headers or {})}, self.command != "HEAD")

        def send(self, data: bytes, status: int, headers: dict[str, str], with_body: bool) -> None:
            self.send_response(status)
            for key, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if with_body:
                self.wfile.write(data)

        def log_message(self, *args: Any) -> None:
            pass

    with running(Handler) as hub.endpoint:
        yield hub
