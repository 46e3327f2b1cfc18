"""The downloader against a server that misbehaves as networks and hubs do."""

import email.utils
import hashlib
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from nanochat.common import download
from nanochat.common.download import DownloadError, Published, fetch
from nanochat.common.errors import UserError
from tests.data.hub_server import COMMIT, Hub, serve

CONTENT = bytes(range(256)) * 40
NAME = "file.bin"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("NANOCHAT_DOWNLOAD_FIRST_WAIT_S", "0.001")
    monkeypatch.setenv("NANOCHAT_DOWNLOAD_ATTEMPTS", "3")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serve() as hub:
        hub.files[NAME] = CONTENT
        yield hub


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds of every wait, which take no time."""
    seconds: list[float] = []
    monkeypatch.setattr(time, "sleep", seconds.append)
    return seconds


def url(hub: Hub) -> str:
    return f"{hub.endpoint}/datasets/me/it/resolve/{COMMIT}/{NAME}"


def sha256(content: bytes = CONTENT) -> Published:
    return Published(len(content), hashlib.sha256(content).hexdigest())


def get(hub: Hub, directory: Path, published: Published | None = None) -> bytes:
    """What is there after a download, and nothing else is."""
    assert fetch(url(hub), directory / NAME, published or sha256()) == len(hub.files[NAME])
    assert [path.name for path in directory.iterdir()] == [NAME]
    return (directory / NAME).read_bytes()


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("fault", ["cut", "reset"])
def test_what_breaks_off_goes_on_where_it_was(hub: Hub, tmp_path: Path, fault: str, known: bool) -> None:
    hub.faults[NAME] = [fault, fault]
    assert get(hub, tmp_path, None if known else Published()) == CONTENT
    first, *further = hub.ranges
    assert first == ""
    assert all(each.startswith("bytes=") for each in further) or fault == "reset"  # what a reset leaves of it is the kernel's to say


@pytest.mark.parametrize("fault", [429, 500, 502, 503, 504, 408])
def test_a_hub_that_is_busy_is_asked_again(hub: Hub, tmp_path: Path, waited: list[float], fault: int) -> None:
    hub.faults[NAME] = [fault, fault]
    assert get(hub, tmp_path) == CONTENT
    assert len(waited) == 2
    assert waited[1] > waited[0]


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_a_hub_that_says_how_long_to_wait_is_obeyed(hub: Hub, tmp_path: Path, waited: list[float], form: str) -> None:
    hub.faults[NAME] = [429]
    hub.retry_after = "7" if form == "seconds" else email.utils.formatdate(time.time() + 7, usegmt=True)
    assert get(hub, tmp_path) == CONTENT
    assert 6 <= waited[0] <= 8


def test_a_date_is_read_by_the_servers_own_clock() -> None:
    headers = {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT", "Date": "Wed, 21 Oct 2015 07:27:30 GMT"}
    assert download._asked_wait_s(httpx.Response(503, headers=headers)) == 30
    assert download._asked_wait_s(httpx.Response(429, headers={"RateLimit": '"resolvers";r=0;t=42'})) == 42
    assert download._asked_wait_s(httpx.Response(429, headers={"Retry-After": "soon"})) == 0


@pytest.mark.parametrize("fault", ["wrong", "page", "short"])
def test_wrong_content_is_thrown_away_and_fetched_again(hub: Hub, tmp_path: Path, fault: str, capsys: pytest.CaptureFixture[str]) -> None:
    hub.faults[NAME] = [fault, fault]
    assert get(hub, tmp_path) == CONTENT
    assert capsys.readouterr().out.count("arrived wrong") == 2


@pytest.mark.parametrize(("fault", "reason"), [("wrong", "its checksum"), ("page", "47 bytes, 10,240 are published"), ("short", "5,120")])
def test_what_is_always_wrong_is_said_and_what_stood_there_stays(hub: Hub, tmp_path: Path, fault: str, reason: str) -> None:
    hub.always[NAME] = fault
    (tmp_path / NAME).write_bytes(b"old")
    with pytest.raises(DownloadError, match=f"{NAME} arrived wrong 3 times .*{reason}"):
        get(hub, tmp_path)
    assert (tmp_path / NAME).read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == [NAME]
    assert hub.downloads()[NAME] == 3


def test_a_small_file_is_held_against_gits_digest(hub: Hub, tmp_path: Path) -> None:
    blob = Published(digest=hashlib.sha1(b"blob %d\0" % len(CONTENT) + CONTENT).hexdigest())
    hub.faults[NAME] = ["wrong"]
    assert get(hub, tmp_path, blob) == CONTENT
    assert hub.downloads()[NAME] == 2


@pytest.mark.parametrize("fault", ["no_range", "elsewhere"])
def test_a_server_that_does_not_go_on_where_it_should(hub: Hub, tmp_path: Path, fault: str) -> None:
    hub.faults[NAME] = ["cut", fault]
    assert get(hub, tmp_path) == CONTENT
    assert hub.ranges[1] == f"bytes={len(CONTENT) // 2}-"


def test_a_file_that_changes_between_two_attempts_is_not_mixed(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.faults[NAME] = ["cut"]
    other = bytes(reversed(CONTENT))
    monkeypatch.setattr(time, "sleep", lambda seconds: hub.files.update({NAME: other}))
    assert get(hub, tmp_path, Published()) == other


def test_a_download_that_was_killed_goes_on(hub: Hub, tmp_path: Path) -> None:
    hub.faults[NAME] = ["cut", 404]
    with pytest.raises(DownloadError):
        get(hub, tmp_path)
    assert not (tmp_path / NAME).exists()
    assert get(hub, tmp_path) == CONTENT
    assert hub.ranges[-1] == f"bytes={len(CONTENT) // 2}-"


def test_what_was_begun_of_another_file_is_removed(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / f".{NAME}.0123456789abcdef.part").write_bytes(CONTENT[:9])
    assert get(hub, tmp_path) == CONTENT
    assert hub.ranges == [""]


def damage_the_beginning(directory: Path) -> None:
    (directory / f".{NAME}.{sha256().digest[:16]}.part").write_bytes(b"x" * 100)


def too_much_of_it(directory: Path) -> None:
    (directory / f".{NAME}.{sha256().digest[:16]}.part").write_bytes(CONTENT * 2)


@pytest.mark.parametrize("left", [damage_the_beginning, too_much_of_it])
def test_what_was_begun_wrongly_is_begun_anew(hub: Hub, tmp_path: Path, left: Callable[[Path], None]) -> None:
    left(tmp_path)
    assert get(hub, tmp_path) == CONTENT


@pytest.mark.parametrize("fault", ["silent", "stalled", "drip"])
def test_a_connection_that_goes_silent_or_drips_is_given_up_and_made_anew(
    hub: Hub, tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NANOCHAT_DOWNLOAD_SILENCE_S", "0.5")
    hub.faults[NAME] = [fault]
    assert get(hub, tmp_path) == CONTENT
    assert hub.downloads()[NAME] == 2


def test_a_hub_that_is_silent_for_ever_is_given_up_clearly(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOCHAT_DOWNLOAD_SILENCE_S", "0.1")
    hub.always[NAME] = "silent"
    with pytest.raises(DownloadError, match=rf"^http://127.*{NAME} cannot be fetched, after 3 attempts: timed out$"):
        get(hub, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("fault", "tries", "reason"), [(503, 3, "after 3 attempts: HTTP 503"), (403, 1, "HTTP 403, it does not let you")])
def test_giving_up_names_the_address_and_the_reason(hub: Hub, tmp_path: Path, fault: int, tries: int, reason: str) -> None:
    hub.always[NAME] = fault
    with pytest.raises(DownloadError, match=f"{NAME} cannot be fetched.*{reason}") as raised:
        get(hub, tmp_path)
    assert hub.downloads()[NAME] == tries
    assert raised.value.status == (fault if tries == 1 else 0)


def test_attempts_that_bring_much_do_not_count(hub: Hub, tmp_path: Path) -> None:
    hub.files[NAME] = CONTENT * 2000
    hub.faults[NAME] = ["cut"] * 4
    assert get(hub, tmp_path, sha256(hub.files[NAME])) == hub.files[NAME]


def test_nobody_at_the_address(tmp_path: Path, waited: list[float]) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(DownloadError, match=r"after 6 attempts: .*refused"):
            fetch(f"http://127.0.0.1:{closed.getsockname()[1]}/{NAME}", tmp_path / NAME)
    assert len(waited) == 5
    with pytest.raises(DownloadError, match=r"ftp://nowhere/x cannot be fetched, after 1 attempt: "):
        fetch("ftp://nowhere/x", tmp_path / NAME)


@pytest.mark.parametrize("value", ["0", "-1", "soon", "nan"])
def test_a_patience_that_is_no_number_is_refused(value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOCHAT_DOWNLOAD_SILENCE_S", value)
    with pytest.raises(UserError, match=f"NANOCHAT_DOWNLOAD_SILENCE_S={value}"):
        fetch("http://127.0.0.1:9/", tmp_path / NAME)


def test_patience_does_not_run_out_of_numbers() -> None:
    assert 0 < download.Patience(attempts=9999).wait_s(5000) <= 1.25 * download.LONGEST_WAIT_S


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [("ALL_PROXY", "socks5://127.0.0.1:9", "SOCKS"), ("HTTPS_PROXY", "foo://127.0.0.1:9", "foo"), ("HTTPS_PROXY", "http://h:port", "port")],
)
def test_a_proxy_that_cannot_be_used_is_said(name: str, value: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    download._client.cache_clear()
    monkeypatch.setenv(name, value)
    with pytest.raises(DownloadError, match=rf"the proxy .*{name}.* cannot be used: .*{reason}"):
        fetch("http://127.0.0.1:9/", tmp_path / NAME)


def test_a_token_that_is_none_is_said_and_not_shown(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="HF_TOKEN") as raised:
        fetch("http://127.0.0.1:9/", tmp_path / NAME, headers={"Authorization": "Bearer hf_né"})
    assert "hf_n" not in str(raised.value)
