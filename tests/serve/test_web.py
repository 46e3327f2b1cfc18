"""The server as its clients use it: OpenAI's own client, bad requests, clients that leave, signals."""

import concurrent.futures
import http.client
import json
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.conftest import ROOT, World, wrong_request
from tests.serve.conftest import CALL

HEADERS = {"Content-Type": "application/json"}
YES = [{"role": "user", "content": "Say yes."}]
SUM = [{"role": "user", "content": "What is 6*7?"}]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        port: int = one.getsockname()[1]
        return port


class Web:
    """A server, and what is asked of it."""

    def __init__(self, process: "subprocess.Popen[str]", port: int, key: str = "x"):
        self.process, self.port = process, port
        self.url = f"http://127.0.0.1:{port}"
        self.client = openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any, dict[str, str]]:
        """Status, body (as JSON where it is) and headers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        connection.request(method, path, data, {**HEADERS, **{name.replace("_", "-"): value for name, value in headers.items()}})
        reply = connection.getresponse()
        text = reply.read().decode()
        connection.close()
        given = {name.lower(): value for name, value in reply.getheaders()}
        return reply.status, json.loads(text) if given.get("content-type") == "application/json" else text, given

    def metric(self, name: str) -> float:
        """A figure of /metrics."""
        found = re.search(rf"^{name} ([\d.e+-]+)$", self.ask("GET", "/metrics")[1], re.MULTILINE)
        assert found, name
        return float(found[1])


@contextmanager
def serving(world: World, *flags: str, key: str = "x", **environment: str) -> Iterator[Web]:
    port = free_port()
    command = world.arguments("scripts.chat_web", "--model_tag=talking", f"--port={port}", *flags)
    with subprocess.Popen(
        command, cwd=ROOT, env=world.environment(**environment), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        one = Web(process, port, key)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            try:
                if one.ask("GET", "/health")[0] == 200:
                    break
            except OSError:
                time.sleep(0.1)
        try:
            yield one
        finally:
            process.kill()


@pytest.fixture(scope="module")
def web(talking: World) -> Iterator[Web]:
    with serving(talking) as one:
        yield one


def test_openais_own_client_is_answered(web: Web) -> None:
    model = web.client.models.list().data[0].id
    assert model == "talking-sft"
    reply = web.client.chat.completions.create(model=model, messages=YES, temperature=0, n=2, logprobs=True, top_logprobs=3)  # type: ignore[arg-type]
    assert [choice.message.content for choice in reply.choices] == ["yes!", "yes!"]
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    scores = reply.choices[0].logprobs
    assert scores
    assert scores.content
    assert "".join(score.token for score in scores.content) == "yes!"
    assert all(score.top_logprobs[0].logprob == pytest.approx(score.logprob, abs=1e-5) for score in scores.content)
    call = web.client.chat.completions.create(model=model, messages=SUM, temperature=0)  # type: ignore[arg-type]
    assert call.choices[0].message.content == "42!"
    assert call.choices[0].message.model_extra == {"parts": CALL}
    again = web.client.chat.completions.create(
        model=model,
        messages=[*SUM, {"role": "assistant", "content": CALL}, *YES],
        temperature=0,  # type: ignore[list-item]
    )
    assert again.choices[0].message.content
    short = web.client.chat.completions.create(model=model, messages=YES, temperature=0, max_tokens=1)  # type: ignore[arg-type]
    assert short.choices[0].finish_reason == "length"
    cut = web.client.chat.completions.create(model=model, messages=SUM, temperature=0, stop=["!", "?"])  # type: ignore[arg-type]
    assert (cut.choices[0].message.content, cut.choices[0].finish_reason) == ("42", "stop")


def test_a_stream_says_the_same(web: Web) -> None:
    chunks = list(
        web.client.chat.completions.create(
            model="talking-sft",
            messages=SUM,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},  # type: ignore[arg-type]
        )
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "42!"
    assert chunks[-1].usage
    assert chunks[-1].usage.completion_tokens > 3
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[0].choices[0].delta.role == "assistant"


def test_seeds_repeat_and_choices_differ(web: Web) -> None:
    def said(**more: Any) -> list[str]:
        reply = web.client.completions.create(model="talking-sft", prompt="The", max_tokens=12, temperature=2, **more)
        return [choice.text for choice in reply.choices]

    assert said(seed=5) == said(seed=5) != said(seed=6)
    assert len(set(said(n=3))) > 1
    reply = web.client.completions.create(model="talking-sft", prompt=["The ", "A "], max_tokens=4, temperature=0, echo=True, logprobs=2)
    assert [choice.text[:2] for choice in reply.choices] == ["Th", "A "]
    assert reply.choices[0].logprobs
    assert len(reply.choices[0].logprobs.tokens or []) == len(reply.choices[0].logprobs.token_logprobs or [])


CHAT = "/v1/chat/completions"


def test_what_openais_clients_send_besides_is_understood(web: Web) -> None:
    assert web.client.models.retrieve("talking-sft").id == "talking-sft"
    assert web.ask("GET", "/v1/models/none")[0] == 404
    assert web.ask("HEAD", "/")[0] == 200
    parts = [{"role": "user", "content": [{"type": "text", "text": "Say "}, {"type": "text", "text": "yes."}]}]
    nulls = {"n": None, "stream": None, "logprobs": None, "model": None, "stop": None, "seed": None}
    status, value, _ = web.ask("POST", CHAT, {"messages": parts, "temperature": 0, **nulls})
    assert (status, value["choices"][0]["message"]["content"]) == (200, "yes!")


def test_a_long_conversation_holds_nobody_up(web: Web) -> None:
    turns = [{"role": role, "content": "word " * 250} for _ in range(255) for role in ("user", "assistant")]
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        asked = pool.submit(web.ask, "POST", CHAT, {"messages": [*turns, *YES], "max_tokens": 4, "truncation": "auto"})
        waits = []
        while not asked.done():
            began = time.monotonic()
            assert web.ask("GET", "/health")[0] == 200
            waits.append(time.monotonic() - began)
        assert asked.result()[0] == 200
    assert max(waits) < 1.5


def test_a_conversation_that_has_outgrown_the_model_can_lose_its_beginning(web: Web) -> None:
    turns = [{"role": role, "content": "word " * 60} for _ in range(10) for role in ("user", "assistant")]
    body = {"messages": [*turns, *YES], "temperature": 0, "max_tokens": 8}
    status, value, _ = web.ask("POST", CHAT, body)
    assert (status, value["error"]["code"]) == (400, "context_length_exceeded")
    status, value, _ = web.ask("POST", CHAT, {**body, "truncation": "auto"})
    assert status == 200
    assert value["truncated"]["messages_left_out"] % 2 == 0
    assert 0 < value["truncated"]["kept_tokens"] <= 1024 - 8 < value["truncated"]["tokens"]
    assert value["usage"]["prompt_tokens"] == value["truncated"]["kept_tokens"]
    status, text, _ = web.ask("POST", CHAT, {**body, "truncation": "auto", "stream": True})
    assert json.loads(text.splitlines()[0].removeprefix("data: "))["truncated"] == value["truncated"]


@pytest.mark.parametrize(
    ("path", "body", "status", "word"),
    [
        (CHAT, b"{", 422, "JSON"),
        (CHAT, b'{"messages": "\xff\xfe"}', 400, "parsing"),
        (CHAT, [], 422, "dictionary"),
        (CHAT, {"messages": []}, 422, "messages"),
        (CHAT, {"messages": "hi"}, 422, "messages"),
        (CHAT, {"messages": [{"role": "wizard", "content": "x"}]}, 422, "role"),
        (CHAT, {"messages": [*YES, *YES]}, 422, "message 2"),
        (CHAT, {"messages": [{"role": "user", "content": ""}]}, 422, "empty"),
        (CHAT, {"messages": [*YES, {"role": "assistant", "content": "no"}]}, 422, "last message"),
        (CHAT, {"messages": YES, "temperature": -3}, 422, "temperature"),
        (CHAT, b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}', 422, "temperature"),
        (CHAT, {"messages": YES, "max_tokens": 0}, 422, "max_tokens"),
        (CHAT, {"messages": YES, "n": 1_000_000}, 422, "n:"),
        (CHAT, {"messages": YES, "seed": 10**30}, 422, "seed"),
        (CHAT, {"messages": YES, "stop": ["x"] * 99}, 422, "stop"),
        (CHAT, {"messages": YES, "top_p": "much"}, 422, "top_p"),
        (CHAT, {"messages": YES, "model": "gpt-9"}, 404, "gpt-9"),
        (CHAT, {"messages": [{"role": "user", "content": "word " * 1500}]}, 400, "1,024"),
        (CHAT, {"messages": [{"role": "user", "content": "a" * 10_000_000}]}, 413, "bytes"),
        ("/v1/completions", {"prompt": []}, 422, "prompt"),
        ("/v1/completions", {"prompt": 5}, 422, "prompt"),
        ("/v1/nothing", {}, 404, "Not Found"),
    ],
)
def test_bad_requests_get_errors_in_openais_shape(path: str, body: Any, status: int, word: str, web: Web) -> None:
    got, value, headers = web.ask("POST", path, body)
    assert got == status, value
    assert word in value["error"]["message"]
    assert set(value["error"]) == {"message", "type", "param", "code"}
    assert "content-security-policy" in headers
    assert web.ask("GET", "/health")[0] == 200


def test_the_page_is_there_and_may_load_nothing_from_elsewhere(web: Web) -> None:
    for path, kind in (("/", "text/html"), ("/page.js", "text/javascript"), ("/style.css", "text/css"), ("/icon.svg", "image/svg+xml")):
        status, text, headers = web.ask("GET", path)
        assert (status, headers["content-type"].split(";")[0]) == (200, kind)
        assert "unsafe" not in headers["content-security-policy"]
        assert "default-src 'none'" in headers["content-security-policy"]
        assert not re.search(r"""(?:src|href|url)\s*[=(]\s*["']?(?:https?:)?//""", text)
    script = (ROOT / "nanochat/serve/page/page.js").read_text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b", script)


def rambling(web: Web, tokens: int = 1000) -> http.client.HTTPConnection:
    """A stream that goes on for long, and of which the beginning was read."""
    connection = http.client.HTTPConnection("127.0.0.1", web.port, timeout=60)
    body = {"prompt": "The", "max_tokens": tokens, "temperature": 50, "top_k": 0, "stream": True}
    connection.request("POST", "/v1/completions", json.dumps(body), HEADERS)
    reply = connection.getresponse()
    assert reply.status == 200
    assert reply.read(10) == b'data: {"id'
    connection.reply = reply  # type: ignore[attr-defined]
    return connection


def test_a_page_whose_name_has_come_to_mean_this_machine_is_not_answered(web: Web) -> None:
    for path in ("/", "/v1/models", "/metrics"):
        status, body, _ = web.ask("GET", path, Host="evil.example")
        assert (status, body["error"]["code"]) == (421, "misdirected_request")
    sent = {"messages": YES, "max_tokens": 1}
    assert web.ask("POST", "/v1/chat/completions", sent, Origin="https://evil.example")[0] == 421
    assert web.ask("POST", "/v1/chat/completions", sent, Origin=web.url, Host=f"localhost:{web.port}")[0] == 200


def test_a_client_that_leaves_frees_its_place(web: Web) -> None:
    some = [rambling(web) for _ in range(4)]
    assert web.metric("nanochat_answers") >= 1
    for connection in some:
        connection.reply.close()  # type: ignore[attr-defined]
        connection.close()
    deadline = time.monotonic() + 10
    while web.metric("nanochat_answers") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert web.metric("nanochat_answers") == 0
    assert web.metric("nanochat_cache_bytes") == 0


def test_many_at_once_are_answered_like_one(web: Web) -> None:
    slow = rambling(web)  # and one that stops reading
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        replies = list(pool.map(lambda _: web.ask("POST", CHAT, {"messages": YES, "temperature": 0}), range(32)))
    assert [value["choices"][0]["message"]["content"] for _, value, _ in replies] == ["yes!"] * 32
    slow.close()


def test_limits_a_key_and_kept_conversations(talking: World, tmp_path: Path) -> None:
    log = tmp_path / "kept.jsonl"
    flags = (
        "--max_queue=3",
        "--max_per_client=2",
        "--max_body_mib=0.01",
        f"--log_conversations={log}",
        "--host=0.0.0.0",
        "--max_tokens=1000",
    )
    with serving(talking, *flags, NANOCHAT_API_KEY="secret", key="secret") as web:
        status, value, _ = web.ask("POST", CHAT, {"messages": YES})
        assert (status, value["error"]["code"]) == (401, "invalid_api_key")
        assert web.ask("POST", CHAT, {})[0] == 401  # before anything is said of the body
        assert web.ask("GET", "/v1/models", Authorization="bearer secret")[0] == 200
        empty = web.ask("POST", CHAT, {"messages": SUM, "temperature": 0, "max_tokens": 1}, Authorization="Bearer secret")
        assert empty[1]["choices"][0]["message"]["content"] == ""
        assert web.ask("GET", "/v1/models", Authorization="Bearer wrong\xe9")[0] == 401
        assert web.client.chat.completions.create(model="", messages=YES, temperature=0).choices[0].message.content == "yes!"  # type: ignore[arg-type]
        kept = json.loads(log.read_text())  # one line: an empty answer teaches nothing
        assert [message["content"] for message in kept["messages"]] == ["Say yes.", [{"type": "text", "text": "yes!"}]]
        with pytest.raises(openai.RateLimitError, match="more than 2 answers"):
            web.client.chat.completions.create(model="", messages=YES, n=3)  # type: ignore[arg-type]
        assert web.ask("POST", CHAT, {"messages": [{"role": "user", "content": "a" * 20_000}]}, Authorization="Bearer secret")[0] == 413


def test_a_full_queue_says_when_to_come_back(talking: World) -> None:
    with serving(talking, "--max_queue=1") as web:
        web.ask("POST", CHAT, {"messages": YES, "temperature": 0})
        status, value, headers = web.ask("POST", CHAT, {"messages": YES, "n": 2})
        assert (status, headers["retry-after"]) == (503, "5")
        assert "try again" in value["error"]["message"]


def test_a_signal_lets_answers_finish(talking: World) -> None:
    with serving(talking) as web:
        connection = rambling(web)
        web.process.send_signal(signal.SIGTERM)
        rest = connection.reply.read().decode()  # type: ignore[attr-defined]
        assert rest.endswith("data: [DONE]\n\n")
        connection.close()
        assert web.process.wait(20) in (0, -signal.SIGTERM)
        with pytest.raises(OSError, match="refused"):
            web.ask("GET", "/health")


def test_wrong_requests(talking: World, web: Web) -> None:
    for args, words in (
        (("--model_tag=talking", f"--port={web.port}"), (str(web.port), "--port")),
        (("--model_tag=none",), ("none", "talking")),
        (("--model_tag=talking", "--port=99999"), ("--port=99999",)),
        (("--model_tag=talking", "--num_gpus=9"), ("--num_gpus=9",)),
        (("--model_tag=talking", "--max_rows=0"), ("--max_rows=0",)),
        (("--model_tag=talking", "--max_body_mib=inf"), ("--max_body_mib",)),
        (("--model_tag=*",), ("--model_tag=*",)),
        (("--model=~no-such-user/x",), ("no such user",)),
        (("--model_tag=talking", "--port=0", "--log_conversations=/no/such/dir/x"), ("/no/such",)),
    ):
        if "/no/such" not in " ".join(args):
            wrong_request(talking.run("scripts.chat_web", *args), *words)
