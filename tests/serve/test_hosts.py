"""A server for this machine alone answers to this machine's names, whoever sends the request."""

import pytest

from nanochat.common.errors import UserError
from nanochat.serve.hosts import Hosts
from tests.conftest import World
from tests.serve.test_web import serving


def refused(hosts: Hosts, **headers: str) -> str:
    return hosts.refuse({name.encode(): value.encode("latin-1") for name, value in headers.items()})


OURS = [
    "127.0.0.1:8000",
    "127.0.0.1",
    "localhost:8000",
    "LOCALHOST",
    "a.localhost:3000",
    "[::1]:8000",
    "127.8.9.1",
    "localhost.",
    "a.LOCALHOST.:80",
    "",
]
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
    assert refused(Hosts("::ffff:127.0.0.1"), host=host) == ""


@pytest.mark.parametrize("host", THEIRS)
def test_others_are_not(host: str) -> None:
    assert "--allowed_hosts" in refused(Hosts("127.0.0.1"), host=host)
    assert "Host" in refused(Hosts("localhost"), host=host)
    assert "Host" in refused(Hosts("::ffff:127.0.0.1"), host=host)


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


@pytest.mark.parametrize(
    ("entry", "host"),
    [
        ("chat.example.com:8443", "chat.example.com"),
        ("https://chat.example.com", "chat.example.com:8443"),
        ("https://chat.example.com:8443/", "CHAT.example.com."),
        ("Chat.Example.com.", "chat.example.com"),
        ("my_container", "my_container:8000"),
        ("[fd00::1]", "[fd00::1]:8000"),
        ("[fd00::1]:8000", "[fd00::1]"),
        ("fd00:0::1", "[fd00::1]"),
        ("fd00::1", "[FD00:0:0::1]"),
        ("10.0.0.1", "[::ffff:10.0.0.1]:80"),
        ("bücher.de", "xn--bcher-kva.de"),
        ("straße.de", "xn--strae-oqa.de"),
        ("*.trycloudflare.com", "a-b.c.trycloudflare.com"),
        ("*.bücher.de:443", "a.xn--bcher-kva.de"),
        ("*", "any.example"),
    ],
)
def test_names_may_be_spelled_in_any_way(entry: str, host: str) -> None:
    hosts = Hosts("127.0.0.1", f"other.example, {entry}")
    assert refused(hosts, host=host, origin=f"https://{host}") == ""
    assert bool(refused(hosts, host="evil.example")) == (entry != "*")


def test_a_name_below_another_is_not_the_other() -> None:
    hosts = Hosts("127.0.0.1", "*.example.org")
    for host in ("example.org", "evilexample.org", "a.example.org.evil.example", ".example.com"):
        assert refused(hosts, host=host) != ""


@pytest.mark.parametrize("entry", ["a b", "https://", "me@example.org", "*.*", "a.*", "*a.org", "a..b", "http://[", "a:b", "x" * 64])
def test_what_is_no_name_is_said(entry: str) -> None:
    with pytest.raises(UserError, match="--allowed_hosts"):
        Hosts("127.0.0.1", entry)


@pytest.mark.parametrize("host", ["LOCALHOST", "127.1"])
def test_this_machine_is_this_machine_however_it_is_spelled(talking: World, host: str) -> None:
    with serving(talking, f"--host={host}") as web:
        assert web.ask("GET", "/health", Host="evil.example")[0] == 421
        for name in ("localhost", host):
            assert web.ask("GET", "/health", Host=name)[0] == 200
        web.process.terminate()
        assert "can be reached by others" not in web.process.communicate()[1]
