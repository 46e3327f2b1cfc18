"""Several copies of a model behind one server share the work, and one that fails leaves the others alone."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from nanochat.engine.engine import Engine
from nanochat.engine.sample import Sampling
from nanochat.model.directory import load_model
from nanochat.serve.app import make_app
from nanochat.serve.hosts import Hosts
from nanochat.serve.serving import Limits, Model, Server
from nanochat.serve.worker import Worker


class Counting(Engine):
    """Counts the prompts it is asked, and breaks when it is told to."""

    asked = 0
    broken = False

    def add(self, *args: Any, **more: Any) -> Any:
        """As Engine's."""
        self.asked += 1
        return super().add(*args, **more)

    def step(self) -> Any:
        """As Engine's."""
        if self.broken:
            raise RuntimeError("out of memory")
        return super().step()


def test_the_copy_with_the_least_to_do_is_asked(trained: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = load_model(trained, torch.device("cpu"))
    workers = [Worker(lambda: Counting(model, tokenizer)) for _ in range(2)]
    served = Model("two", tokenizer, model.config.max_seq_len, workers, Sampling(), 16)
    app = make_app(Server(served, Limits(), Hosts("0.0.0.0")))

    async def ask(count: int) -> list[int]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://two") as client:
            body = {"prompt": "The", "max_tokens": 24, "temperature": 1}
            return [reply.status_code for reply in await asyncio.gather(*(client.post("/v1/completions", json=body) for _ in range(count)))]

    assert asyncio.run(ask(8)) == [200] * 8
    asked = [worker.engine.asked for worker in workers]  # type: ignore[attr-defined]
    assert sum(asked) == 8
    assert min(asked) >= 3
    workers[0].engine.broken = True  # type: ignore[attr-defined]
    assert sorted(asyncio.run(ask(2))) == [200, 500]
    assert "out of memory" in capfd.readouterr().err
    assert asyncio.run(ask(4)) == [200] * 4  # it has made itself anew
    for worker in workers:
        worker.close()
