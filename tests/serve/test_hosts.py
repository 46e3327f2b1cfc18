"""A server for this machine alone answers to this machine's names, whoever sends the request."""

import pytest

from nanochat.serve.hosts import Hosts


def refused(hosts: Hosts, **headers: str) -> str:
    return hosts.refuse({name.encode(): value.encode("latin-1") for name, value in headers.items()})


OURS = ["127.0.0.1:8000", "127.0.0.1", "localhost:8000", "LOCALHOST", "a.localhost:3000", "[::1]:8000", "127.8.9.1", ""]
THEIRS = [
    "evil.example",
    "evil.example:8000",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "10.0.0.1:8000",
    "[fe80::1]",
    "[::1",
    "@",
    ":80",
    "null",
]


@pytest.mark.parametrize("host", OURS)
def test_this_machines_names_are_answered_to(host: str) -> None:
    assert refused(Hosts("127.0.0.1"), host=host) == ""
    assert refused(Hosts("::1"), host=host) == ""


@pytest.mark.parametrize("host", THEIRS)
def test_others_are_not(host: str) -> None:
    assert "--allowed_hosts" in refused(Hosts("127.0.0.1"), host=host)
    assert "Host" in refused(Hosts("localhost"), host=host)


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "https://evil.example:8000", "null", "file://", "http://[", "http://localhost@evil.example"]
)
def test_nor_are_pages_from_elsewhere(origin: str) -> None:
    assert "Origin" in refused(Hosts("127.0.0.1"), host="127.0.0.1:8000", origin=origin)


def test_pages_from_this_machine_are() -> None:
    for origin in ("http://127.0.0.1:8000", "http://localhost:3000", "http://[::1]:8000"):
        assert refused(Hosts("127.0.0.1"), host="127.0.0.1:8000", origin=origin) == ""


def test_further_names_are_named() -> None:
    hosts = Hosts("127.0.0.1", "chat.example.org, Other.example")
    assert refused(hosts, host="chat.example.org", origin="https://chat.example.org") == ""
    assert refused(hosts, host="OTHER.example:80") == ""
    assert refused(hosts, host="localhost:8000") == ""
    assert refused(hosts, host="evil.example") != ""


def test_a_server_for_others_takes_every_name_unless_they_are_named() -> None:
    assert refused(Hosts("0.0.0.0"), host="any.example", origin="https://other.example") == ""
    assert refused(Hosts("0.0.0.0", "chat.example.org"), host="any.example") != ""
    assert refused(Hosts("0.0.0.0", "chat.example.org"), host="chat.example.org") == ""
