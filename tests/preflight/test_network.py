"""The hub, wandb, the clock and ports, against servers of this machine that answer, refuse, err or are silent."""

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from nanochat.preflight import clock, network, ports
from nanochat.preflight.check import GREEN, RED, YELLOW, Finding
from nanochat.preflight.settings import PreflightSettings
from tests.local_server import running
from tests.train.wandb_server import silent_server

SETTINGS = PreflightSettings(depth=2)
TOKEN = "hf_secretsecretsecret"


@contextlib.contextmanager
def server(status: int = 200, body: Any = None, ahead_s: float | None = 0) -> Iterator[str]:
    """Answers everything alike; its clock is so far ahead, None for no clock."""

    class Handler(BaseHTTPRequestHandler):
        def date_time_string(self, timestamp: float | None = None) -> str:
            return "" if ahead_s is None else formatdate(time.time() + ahead_s, usegmt=True)

        def do_GET(self) -> None:
            data = json.dumps(body or {}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_HEAD = do_POST = do_GET  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    with running(Handler) as address:
        yield address


@pytest.fixture(autouse=True)
def nobody(machine: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No tokens and no proxy of this machine's own."""
    machine(says="No devices were found", status=6)
    for name in ("HF_TOKEN", "HF_ENDPOINT", "WANDB_API_KEY", "WANDB_MODE", "WANDB_RUN", "MASTER_PORT", "MASTER_ADDR", "NODE_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(network, "ANSWER_S", 1.0)
    monkeypatch.setattr(clock, "ANSWER_S", 1.0)


def at(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)


def hub(settings: PreflightSettings = SETTINGS) -> Finding:
    (finding,) = network.check_hub(settings)
    assert TOKEN not in str(finding)
    return finding


@pytest.mark.parametrize(
    ("token", "status", "body", "expected", "words"),
    [
        (None, 200, {}, GREEN, "nobody is logged in"),
        (None, 404, {}, GREEN, "answers"),
        (None, 503, {}, RED, "answers 503"),
        (TOKEN, 200, {"name": "somebody"}, GREEN, "logged in as somebody"),
        (TOKEN, 401, {"error": f"Invalid token {TOKEN}"}, RED, "refuses the token (401)"),
        (TOKEN, 404, {}, GREEN, "does not say who"),
        (TOKEN, 500, {}, RED, "answers 500"),
    ],
)
def test_the_hub(monkeypatch: pytest.MonkeyPatch, token: str | None, status: int, body: Any, expected: str, words: str) -> None:
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with server(status, body) as address:
        at(monkeypatch, address)
        finding = hub()
    assert finding.status == expected
    assert words in finding.value


def test_a_hub_that_is_silent_costs_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    with silent_server() as address:
        at(monkeypatch, address)
        finding = hub()
    assert finding.status == RED
    assert "does not answer" in finding.value
    assert finding.advice


def test_a_hub_that_is_not_there_stops_only_who_needs_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    at(monkeypatch, "http://user:secret@127.0.0.1:9")
    assert hub().status == RED
    assert "secret" not in hub().value
    assert hub(PreflightSettings(depth=2, data="python")).status == GREEN
    (tmp_path / "base/runs/d2/base/model").mkdir(parents=True)
    assert hub().status == YELLOW


def test_a_hub_that_may_not_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert hub().status == RED


def shards(directory: Path, ending: str, count: int) -> None:
    """The validation shard and the first ones of the rest, of hardly any bytes."""
    directory.mkdir(parents=True)
    for index in (6542, *range(count)):
        (directory / f"shard_{index:05d}.{ending}").write_bytes(b"x")


def test_text_that_is_there_needs_no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    text, settings = tmp_path / "base/data/climbmix", PreflightSettings(depth=2, num_iterations=200)
    needed = settings.answer().disk.text_shards
    assert needed == 3
    shards(text, "parquet", needed)
    assert hub(settings).status == YELLOW
    (text / "shard_06542.parquet").rename(text / "shard_00003.parquet")  # as many, but none to validate on
    assert hub(settings).status == RED


def test_token_shards_of_all_text_need_no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    settings = PreflightSettings(depth=2, num_iterations=200)
    tokens = tmp_path / "base/tokens/climbmix-0123456789"
    shards(tokens, "bin", 3)
    about = {"split": "train", "documents": 1, "tokens": 1, "bytes": 1, "sha256": "", "source": ""}
    index = {"data": "climbmix", "tokenizer": "climbmix-65536", "tokenizer_hash": "0123456789", "vocab_size": 65_536}

    def status(names: list[str], **more: Any) -> str:
        listed = [{"name": name, **about} for name in names]
        (tokens / "index.json").write_text(json.dumps({**index, "shards": listed, **more}))
        return hub(settings).status

    names = sorted(path.name for path in tokens.glob("*.bin"))
    assert status(names) == YELLOW
    assert status(names[:-1]) == RED
    assert status(names, vocab_size=4096) == RED
    (tokens / "index.json").write_text("{")
    assert hub(settings).status == RED


@pytest.mark.parametrize(
    ("ahead_s", "status", "words"),
    [
        (0, GREEN, "as 127.0.0.1"),
        (20, GREEN, "as 127.0.0.1"),
        (-600, YELLOW, "10 minutes ahead of 127.0.0.1"),
        (3 * 3600, YELLOW, "3.0 hours behind 127.0.0.1"),
        (2 * 365 * 86_400, RED, "730 days behind 127.0.0.1"),
        (None, YELLOW, "did not tell the time"),
    ],
)
def test_the_clock(monkeypatch: pytest.MonkeyPatch, ahead_s: float | None, status: str, words: str) -> None:
    with server(404, ahead_s=ahead_s) as address:
        at(monkeypatch, address)
        (finding,) = clock.check(SETTINGS)
    assert finding.status == status
    assert words in finding.value


def test_a_silent_server_leaves_the_clock_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    with silent_server() as address:
        at(monkeypatch, address)
        assert clock.check(SETTINGS)[0].status == YELLOW


def test_a_clock_from_before_the_program_is_red_without_any_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_000_000_000.0)
    (finding,) = clock.check(PreflightSettings(data="python"))
    assert finding.status == RED
    assert finding.value.startswith("2001-09-09")


def wandb_at(monkeypatch: pytest.MonkeyPatch, address: str, key: str = "k" * 40) -> Finding:
    monkeypatch.setenv("WANDB_RUN", "mine")
    monkeypatch.setenv("WANDB_BASE_URL", address)
    if key:
        monkeypatch.setenv("WANDB_API_KEY", key)
    (finding,) = network.check_wandb(SETTINGS)
    assert "k" * 40 not in str(finding)
    return finding


def test_wandb_is_asked_only_where_a_run_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert network.check_wandb(SETTINGS) == []
    for run, mode in (("dummy", ""), ("mine", "offline"), ("mine", "disabled")):
        monkeypatch.setenv("WANDB_RUN", run)
        monkeypatch.setenv("WANDB_MODE", mode)
        assert network.check_wandb(SETTINGS) == []


def test_wandb_without_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    finding = wandb_at(monkeypatch, "http://127.0.0.1:9", key="")
    assert finding.status == YELLOW
    assert "No API key" in finding.value
    assert "wandb login" in finding.advice


def test_wandb_knows_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    viewer = {"id": "1", "username": "somebody", "name": "Some Body", "entity": "somebody", "email": "", "admin": False, "flags": "{}"}
    with server(body={"data": {"viewer": {**viewer, "deletedAt": None, "apiKeys": None, "teams": None}}}) as address:
        finding = wandb_at(monkeypatch, address)
    assert finding.status == GREEN, finding
    assert "logged in as somebody" in finding.value


def test_wandb_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    with server(401) as address:
        assert wandb_at(monkeypatch, address).status == YELLOW


def test_a_free_port_and_a_taken_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("", 0)) as listening:
        port = listening.getsockname()[1]
        monkeypatch.setenv("MASTER_PORT", str(port))
        own, master = ports.check(PreflightSettings(nodes=2))
        assert own.status == GREEN
        assert master.status == RED
        assert f"MASTER_PORT {port} cannot be had (Address already in use" in master.value
        assert [finding.name for finding in ports.check(SETTINGS)] == ["ports"]
        monkeypatch.setenv("NODE_RANK", "1")
        assert [finding.name for finding in ports.check(PreflightSettings(nodes=2))] == ["ports"]
    monkeypatch.setenv("NODE_RANK", "0")
    assert ports.check(PreflightSettings(nodes=2))[1] == Finding("master port", GREEN, f"{port} is free")
