"""Many clients at once: none fails, none is favoured, nothing is left behind, and the API's own description holds."""

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import psutil
import pytest

from tests.conftest import World
from tests.serve.test_web import CHAT, HEADERS, YES, Web, rambling, serving

CLIENTS = 64


async def stream_for(seconds: float, web: Web) -> list[int]:
    """Pieces of answers that each client was streamed in that time, one answer after the other."""
    until = time.monotonic() + seconds
    pieces = [0] * CLIENTS
    body = json.dumps({"prompt": "The", "max_tokens": 48, "temperature": 5, "top_k": 0, "stream": True}).encode()
    request = b"POST /v1/completions HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body

    async def client(number: int) -> None:
        while time.monotonic() < until:
            reader, writer = await asyncio.open_connection("127.0.0.1", web.port)
            writer.write(request)
            assert b" 200 " in await reader.readline()
            last = b""
            while line := await reader.readline():
                if line.startswith(b"data: "):
                    assert not line.startswith(b'data: {"error"'), line
                    pieces[number] += time.monotonic() < until
                    last = line
            assert last == b"data: [DONE]\n"
            writer.close()

    await asyncio.gather(*(client(number) for number in range(CLIENTS)))
    return pieces


async def soak(seconds: float, web: Web) -> tuple[list[int], list[int]]:
    """The same, and the memory that the server held, looked at sixty times."""
    process, held = psutil.Process(web.process.pid), []

    async def watch() -> None:
        while True:
            held.append(process.memory_info().rss)
            await asyncio.sleep(seconds / 60)

    watching = asyncio.create_task(watch())
    pieces = await stream_for(seconds, web)
    watching.cancel()
    return pieces, held


@pytest.mark.parametrize("seconds", [6, pytest.param(600, marks=pytest.mark.slow)])
def test_many_clients_are_served_alike_and_leave_nothing_behind(talking: World, seconds: float) -> None:
    with serving(talking, "--max_per_client=80", OMP_NUM_THREADS="2") as web:
        process = psutil.Process(web.process.pid)
        asyncio.run(stream_for(2, web))
        files = process.num_fds()
        idle = [rambling(web) for _ in range(2)]  # they stop reading, and hold nobody up
        pieces, held = asyncio.run(soak(seconds, web))
        assert min(pieces) > 0
        assert max(pieces) <= 2 * min(pieces), pieces
        for connection in idle:
            connection.reply.close()  # type: ignore[attr-defined]
            connection.close()
        deadline = time.monotonic() + 20
        while (web.metric("nanochat_answers") or process.num_fds() > files + 2) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert web.metric("nanochat_answers") == 0
        assert web.metric("nanochat_cache_bytes") == 0
        assert process.num_fds() <= files + 2  # one of them asks for the figures
        # At first it grows: oneDNN keeps what it has made for each size of a product, of up to 1,024 the last ones.
        assert median(held[40:]) < 1.1 * median(held[20:40])
        assert web.ask("POST", CHAT, {"messages": YES, "temperature": 0})[1]["choices"][0]["message"]["content"] == "yes!"
        print(f"{sum(pieces) / seconds:,.0f} pieces a second over {CLIENTS} clients, {min(pieces)} to {max(pieces)} each")


def test_nothing_that_the_description_allows_breaks_the_server(talking: World, tmp_path: Path) -> None:
    with serving(talking, "--max_tokens=4") as web:
        assert web.ask("GET", "/openapi.json")[0] == 200
        command = [str(Path(sys.executable).with_name("schemathesis")), "run", f"{web.url}/openapi.json", "--checks=not_a_server_error"]
        command += ["--mode=all", "--max-examples=40", "--seed=1", "--workers=1", "--request-timeout=30"]
        finished = subprocess.run(
            command, cwd=tmp_path, env={**os.environ, "NO_COLOR": "1"}, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        assert finished.returncode == 0, finished.stdout + finished.stderr
        made = re.search(r"(\d+) generated, (\d+) passed", finished.stdout)
        assert made
        assert made[1] == made[2]
        assert int(made[1]) > 200
        assert web.process.poll() is None
        assert web.ask("POST", CHAT, {"messages": YES, "temperature": 0, "max_tokens": 8}, **HEADERS)[0] == 200
