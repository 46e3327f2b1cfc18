"""A token goes to whoever it was meant for, and no further: the hub sends large files from other hosts."""

import http.server
from pathlib import Path

import pytest

from nanochat.common.download import fetch
from tests.local_server import running


def test_a_redirect_to_another_host_does_not_carry_the_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    seen: dict[str, str | None] = {}
    there: list[str] = []

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen[self.path] = self.headers.get("Authorization")
            moved = {"/file": "/here", "/here": f"{there[0]}/there"}.get(self.path)
            self.send_response(302 if moved else 200)
            self.send_header("Location", moved or "")
            self.send_header("Content-Length", "0" if moved else "5")
            self.end_headers()
            self.wfile.write(b"" if moved else b"whole")

        def log_message(self, *args: object) -> None:
            pass

    with running(Hub) as hub, running(Hub) as elsewhere:
        there.append(elsewhere.replace("127.0.0.1", "localhost"))
        fetch(f"{hub}/file", tmp_path / "file", headers={"Authorization": "Bearer secret"})
    assert (tmp_path / "file").read_bytes() == b"whole"
    assert seen == {"/file": "Bearer secret", "/here": "Bearer secret", "/there": None}
