"""What is believed of an answer to the question what the hub publishes of a file."""

import http.server

import pytest

from nanochat.common import hub
from nanochat.common.download import DownloadError
from tests.local_server import running

COMMIT = "0123456789abcdef0123456789abcdef01234567"
DIGEST = "fedcba98" * 8


class Answers(http.server.BaseHTTPRequestHandler):
    """Answers by the name of the file; `{here}` in a header is this server."""

    by_name: dict[str, tuple[int, dict[str, str]]]

    def do_HEAD(self) -> None:
        status, headers = self.by_name[self.path.rsplit("/", 1)[-1]]
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value.format(here=f"http://{self.headers['Host']}"))
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


def published(name: str, by_name: dict[str, tuple[int, dict[str, str]]], monkeypatch: pytest.MonkeyPatch) -> hub.HubFile:
    """What is found out of a file of a hub that gives these answers."""
    monkeypatch.setenv("NO_PROXY", "*")
    with running(type("Those", (Answers,), {"by_name": by_name})) as endpoint:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr("huggingface_hub.utils.build_hf_headers", lambda **_: {})
        return hub.look_up("me/it", name, "main")


@pytest.mark.parametrize(
    "answer",
    [
        (200, {"Content-Type": "text/html", "Content-Length": "47"}),
        (302, {"Location": "http://portal.invalid/login"}),
        (302, {"Location": "{here}/shard"}),
    ],
    ids=["a page", "sent elsewhere", "sent around"],
)
def test_what_is_not_the_hub_is_not_believed(answer: tuple[int, dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DownloadError, match=r"neither the hub nor a mirror of it.*HF_ENDPOINT"):
        published("shard", {"shard": answer}, monkeypatch)


@pytest.mark.parametrize("place", ["{here}/moved", "/moved"])
def test_a_redirect_on_the_same_host_is_followed(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = (200, {"X-Repo-Commit": COMMIT, "ETag": f'"{DIGEST}"', "Content-Length": "9"})
    found = published("shard", {"shard": (307, {"Location": place}), "moved": moved}, monkeypatch)
    assert (found.commit, found.published) == (COMMIT, hub.Published(9, DIGEST))


@pytest.mark.parametrize("place", ["http://elsewhere.invalid/bytes", "{here}/bytes"])
def test_a_redirect_that_tells_of_the_file_is_the_answer(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"X-Repo-Commit": COMMIT, "X-Linked-Etag": f'"{DIGEST}"', "X-Linked-Size": "9", "Location": place}
    found = published("shard", {"shard": (302, told), "bytes": (200, {"ETag": '"of the store"'})}, monkeypatch)
    assert (found.commit, found.published) == (COMMIT, hub.Published(9, DIGEST))
