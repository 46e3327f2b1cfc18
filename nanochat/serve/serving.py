"""A model that is served: its limits, its meters, who is let in."""

import hmac
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from nanochat.engine.sample import Sampling
from nanochat.serve.hosts import Hosts
from nanochat.serve.protocol import Wish, error
from nanochat.serve.worker import Worker
from nanochat.tokenizer.tokenizer import Tokenizer


@dataclass
class Limits:
    """What one server takes on."""

    body_bytes: int = 4 << 20
    queue: int = 256
    """Answers that are made or wait, over all clients."""
    per_client: int = 64
    """Answers that are made or wait for one address."""


@dataclass
class Model:
    """What is served."""

    name: str
    tokenizer: Tokenizer
    context: int
    workers: list[Worker]
    default: Sampling
    max_tokens: int
    """Tokens of an answer where the request does not say."""
    created: int = 0


class Refused(Exception):
    """A request that is not answered, with the status that says why."""

    def __init__(self, status: int, message: str, type_: str = "invalid_request_error", code: str | None = None, param: str | None = None):
        super().__init__(message)
        self.status, self.body = status, error(message, type_, code, param)


@dataclass
class Meters:
    """What /metrics tells."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        r = self.registry
        self.requests = Counter("nanochat_requests", "Requests by path and status", ["path", "status"], registry=r)
        self.prompt_tokens = Counter("nanochat_prompt_tokens", "Tokens of prompts", registry=r)
        self.tokens = Counter("nanochat_generated_tokens", "Tokens of answers", registry=r)
        self.first = Histogram("nanochat_first_token_seconds", "Time to the first token of an answer", registry=r)
        self.load = Gauge("nanochat_answers", "Answers that are made or wait", registry=r)
        self.cache = Gauge("nanochat_cache_bytes", "Bytes of keys and values that are held", registry=r)


class Server:
    """A model behind the API."""

    def __init__(self, model: Model, limits: Limits, hosts: Hosts, api_key: str = "", log: Any = None):
        """hosts: the names that it answers to; log: called with each conversation that was answered, None for not keeping any."""
        self.model, self.limits, self.hosts, self.api_key, self.log = model, limits, hosts, api_key, log
        self.meters = Meters()
        self.draining = False
        self._clients: dict[str, int] = {}

    def knows(self, authorization: bytes) -> bool:
        """Whether that header of a request brings the key, where there is one."""
        scheme, _, given = authorization.partition(b" ")
        return not self.api_key or (scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(), self.api_key.encode()))

    def let_in(self, wish: Wish) -> None:
        """Raises Refused for what is not answered, or not now."""
        if self.draining:
            raise Refused(503, "the server is stopping", "server_error")
        if wish.model and wish.model != self.model.name:
            raise Refused(
                404, f"there is no model {wish.model!r} here; {self.model.name!r} is served", code="model_not_found", param="model"
            )

    @asynccontextmanager
    async def places(self, client: str, count: int) -> AsyncIterator[None]:
        """Hold places for answers. Raises Refused where there are none."""
        if self._clients.get(client, 0) + count > self.limits.per_client:
            raise Refused(
                429, f"more than {self.limits.per_client} answers at once for one client", "rate_limit_error", "rate_limit_exceeded"
            )
        if sum(self._clients.values()) + count > self.limits.queue:
            raise Refused(503, f"{self.limits.queue} answers are made or wait already: try again later", "server_error")
        self._clients[client] = self._clients.get(client, 0) + count
        try:
            yield
        finally:
            self._clients[client] -= count
            if not self._clients[client]:
                del self._clients[client]

    def worker(self) -> Worker:
        """The one with the least to do."""
        return min(self.model.workers, key=lambda worker: worker.load)

    def most_tokens(self, wish: Wish) -> int:
        """Tokens that an answer may take."""
        return getattr(wish, "max_completion_tokens", None) or wish.max_tokens or self.model.max_tokens
