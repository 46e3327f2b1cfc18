"""The HTTP API in OpenAI's shape, and the page."""

import asyncio
import hmac
import json
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nanochat import __version__
from nanochat.common.errors import UserError
from nanochat.engine.batch import turn_ends
from nanochat.engine.engine import Scored
from nanochat.engine.sample import Sampling
from nanochat.engine.text import Piece, TextStream
from nanochat.serve.protocol import ChatRequest, CompletionRequest, Wish, error, head, usage
from nanochat.serve.worker import EngineFailed, Ticket, Worker
from nanochat.tokenizer.conversation import Renderer, check_conversation
from nanochat.tokenizer.tokenizer import Tokenizer

PAGE = Path(__file__).parent / "page"
FILES = {
    "/": ("index.html", "text/html"),
    "/style.css": ("style.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
SECURITY = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
RETRY_AFTER_S = "5"
DISCARDED = 8  # times the limit of a body that are read and thrown away


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


class Guard:
    """Limits the size of bodies, adds the headers that keep a browser safe, counts requests."""

    def __init__(self, app: ASGIApp, limit: int, meters: Meters):
        self.app, self.limit, self.meters = app, limit, meters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        taken = 0

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self.limit:
                raise HTTPException(413, f"the body has more than {self.limit:,} bytes")
            return message

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *((key.lower().encode(), value.encode()) for key, value in SECURITY.items())]
                known = scope["path"] in KNOWN
                self.meters.requests.labels(scope["path"] if known else "other", str(message["status"])).inc()
            await send(message)

        said = dict(scope["headers"]).get(b"content-length", b"0")
        if said.isdigit() and int(said) > self.limit:
            left = DISCARDED * self.limit  # a client that is cut off while it sends does not read why
            while left > 0 and (message := await receive()).get("more_body"):
                left -= len(message["body"])
            body = error(f"the body has {int(said):,} bytes; {self.limit:,} are taken at most", "invalid_request_error")
            await JSONResponse(body, 413)(scope, receive, guarded)
            return
        await self.app(scope, counted, guarded)


KNOWN = {*FILES, "/health", "/metrics", "/v1/models", "/v1/chat/completions", "/v1/completions"}


class Server:
    """A model behind the API."""

    def __init__(self, model: Model, limits: Limits, api_key: str = "", log: Any = None):
        """log: called with each conversation that was answered; None for not keeping any."""
        self.model, self.limits, self.api_key, self.log = model, limits, api_key, log
        self.meters = Meters()
        self.draining = False
        self._clients: dict[str, int] = {}

    def app(self) -> FastAPI:
        """The ASGI application."""

        @asynccontextmanager
        async def lifespan(_: FastAPI) -> AsyncIterator[None]:
            yield
            for worker in self.model.workers:
                await asyncio.to_thread(worker.close)

        app = FastAPI(title="nanochat", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
        app.add_middleware(Guard, limit=self.limits.body_bytes, meters=self.meters)

        @app.exception_handler(Refused)
        async def refused(_: Request, why: Refused) -> JSONResponse:
            headers = {"Retry-After": RETRY_AFTER_S} if why.status in (429, 503) else None
            return JSONResponse(why.body, why.status, headers)

        @app.exception_handler(RequestValidationError)
        async def invalid(_: Request, why: RequestValidationError) -> JSONResponse:
            first = why.errors()[0]
            where = ".".join(str(each) for each in first["loc"] if each != "body")
            return JSONResponse(
                error(f"{where}: {first['msg']}" if where else first["msg"], "invalid_request_error", None, where or None), 422
            )

        @app.exception_handler(HTTPException)
        async def http_error(_: Request, why: HTTPException) -> JSONResponse:
            return JSONResponse(error(str(why.detail), "invalid_request_error"), why.status_code, why.headers)

        @app.exception_handler(EngineFailed)
        async def failed(_: Request, why: EngineFailed) -> JSONResponse:
            return JSONResponse(error(str(why), "server_error"), 500)

        def serve(path: str, name: str, kind: str) -> None:
            @app.get(path, include_in_schema=False)
            async def _file() -> FileResponse:
                return FileResponse(PAGE / name, media_type=kind, headers={"Cache-Control": "no-cache"})

        for path, (name, kind) in FILES.items():
            serve(path, name, kind)

        @app.get("/health")
        async def health() -> JSONResponse:
            """Whether requests are taken."""
            return JSONResponse({"status": "stopping" if self.draining else "ok"}, 503 if self.draining else 200)

        @app.get("/metrics", response_class=Response)
        async def metrics() -> Response:
            """Figures for Prometheus."""
            self.meters.load.set(sum(worker.load for worker in self.model.workers))
            self.meters.cache.set(sum(worker.engine.cache.bytes for worker in self.model.workers))
            return Response(generate_latest(self.meters.registry), media_type=CONTENT_TYPE_LATEST)

        @app.get("/v1/models")
        async def models(request: Request) -> dict[str, Any]:
            """The model that is served."""
            self._let_in(request)
            one = {"id": self.model.name, "object": "model", "created": self.model.created, "owned_by": "nanochat"}
            return {"object": "list", "data": [{**one, "context": self.model.context}]}

        @app.post("/v1/chat/completions", response_model=None)
        async def chat(body: ChatRequest, request: Request) -> Response:
            """Answer a conversation."""
            self._let_in(request, body)
            messages = [one.model_dump() for one in body.messages]
            try:
                check_conversation({"messages": messages})
            except UserError as why:
                raise Refused(422, str(why), param="messages") from None
            if messages[-1]["role"] != "user":
                raise Refused(422, "the last message is not the user's: there is nothing to answer", param="messages")
            prompt = Renderer(self.model.tokenizer).prompt({"messages": messages})
            return await Chat(self, request, body, [prompt], messages).respond()

        @app.post("/v1/completions", response_model=None)
        async def completions(body: CompletionRequest, request: Request) -> Response:
            """Go on with a text."""
            self._let_in(request, body)
            texts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
            prompts = [[self.model.tokenizer.bos_id, *self.model.tokenizer.encode(text)] for text in texts]
            return await Completion(self, request, body, prompts, texts).respond()

        return app

    def _let_in(self, request: Request, wish: Wish | None = None) -> None:
        """Raises Refused for who may not come in, or not now."""
        if self.api_key:
            given = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
            if not hmac.compare_digest(given.encode("utf-8", "replace"), self.api_key.encode()):
                raise Refused(
                    401,
                    "the API key is missing or wrong: send it as `Authorization: Bearer KEY`",
                    "authentication_error",
                    "invalid_api_key",
                )
        if wish is None:
            return
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


@dataclass
class Choice:
    """One of a request's answers, on its way."""

    index: int
    ticket: Ticket
    prompt: list[int]
    text: TextStream
    pieces: list[Piece] = field(default_factory=list)
    scores: list[tuple[int, Scored]] = field(default_factory=list)
    tokens: int = 0
    finish: str | None = None


class Exchange:
    """A request and its answers: what chat and completions share."""

    kind = chunk_kind = prefix = ""

    def __init__(self, server: Server, request: Request, wish: Wish, prompts: list[list[int]]):
        self.server, self.request, self.wish, self.prompts = server, request, wish, prompts
        self.id = f"{self.prefix}-{secrets.token_hex(12)}"
        self.tokenizer = server.model.tokenizer
        self.started = asyncio.get_running_loop().time()

    # What chat and completions do each in their own way.
    top_logprobs = -1
    stops: frozenset[int] = frozenset()
    tools = False

    def whole(self, choice: Choice) -> dict[str, Any]:
        """A finished choice."""
        raise NotImplementedError

    def part(self, choice: Choice, pieces: Sequence[Piece], scores: Sequence[tuple[int, Scored]]) -> dict[str, Any]:
        """Some of a choice, in a stream."""
        raise NotImplementedError

    def opening(self, index: int) -> list[dict[str, Any]]:
        """What a stream begins with."""
        return []

    def _sampling(self, number: int) -> Sampling:
        wish, default = self.wish, self.server.model.default
        seed = secrets.randbits(62) if wish.seed is None else wish.seed + number

        def or_default(value: float | int | None, usual: float | int) -> Any:
            return usual if value is None else value

        return Sampling(
            or_default(wish.repetition_penalty, default.repetition_penalty),
            or_default(wish.temperature, default.temperature),
            or_default(wish.top_k, default.top_k),
            or_default(wish.top_p, default.top_p),
            or_default(wish.min_p, default.min_p),
            seed,
        )

    def _ask(self) -> list[Choice]:
        model = self.server.model
        most = getattr(self.wish, "max_completion_tokens", None) or self.wish.max_tokens or model.max_tokens
        choices: list[Choice] = []
        for prompt in self.prompts:
            for _ in range(self.wish.n):
                number = len(choices)
                ticket = self.server.worker().ask(
                    prompt, most, self._sampling(number), stops=self.stops, tools=self.tools, logprobs=self.top_logprobs
                )
                choices.append(Choice(number, ticket, prompt, TextStream(self.tokenizer, self.wish.stops)))
        self.server.meters.prompt_tokens.inc(sum(len(prompt) for prompt in self.prompts))
        return choices

    async def respond(self) -> Response:
        """The answer, whole or as a stream. Raises Refused for a prompt that leaves no room."""
        for prompt in self.prompts:
            if len(prompt) >= self.server.model.context:
                message = (
                    f"this has {len(prompt):,} tokens; the model takes {self.server.model.context:,}, its answer included; nothing was cut"
                )
                raise Refused(400, message, code="context_length_exceeded")
        client = self.request.client.host if self.request.client else ""
        places = self.server.places(client, len(self.prompts) * self.wish.n)
        await places.__aenter__()  # before the status goes out
        if self.wish.stream:
            return StreamingResponse(self._stream(places), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        choices: list[Choice] = []
        try:
            choices = self._ask()
            await self._unless_gone(asyncio.gather(*(self._collect(choice) for choice in choices)))
        finally:
            for choice in choices:
                choice.ticket.cancel()
            await places.__aexit__(None, None, None)
        self._done(choices)
        return JSONResponse(
            {
                **head(self.kind, self.id, self.server.model.name),
                "choices": [self.whole(choice) for choice in choices],
                "usage": self._usage(choices),
            }
        )

    async def _unless_gone(self, work: "asyncio.Future[Any]") -> None:
        """Wait for work, but not when nobody waits for it any more."""
        while not work.done():
            await asyncio.wait([work], timeout=0.5)
            if not work.done() and await self.request.is_disconnected():
                work.cancel()
                raise Refused(499, "the client has left")
        work.result()

    async def _collect(self, choice: Choice) -> None:
        async for _ in self._follow(choice):
            pass

    async def _follow(self, choice: Choice) -> AsyncIterator[tuple[list[Piece], list[tuple[int, Scored]]]]:
        """What a choice says, as it comes."""
        meters = self.server.meters
        async for news in choice.ticket.news():
            if news.ids and not choice.tokens:
                meters.first.observe(asyncio.get_running_loop().time() - self.started)
            pieces = choice.text.push(news.ids)
            choice.tokens += len(news.ids)
            meters.tokens.inc(len(news.ids))
            if choice.text.stopped:
                choice.ticket.cancel()
                choice.finish = "stop"
            elif news.finish is not None:
                pieces += choice.text.finish()
                choice.finish = "stop" if news.finish == "stop" else "length"
            scores = [(token, score) for token, score in zip(news.ids, news.scores, strict=False) if score]
            choice.pieces += pieces
            choice.scores += scores
            yield pieces, scores
            if choice.finish:
                return

    async def _stream(self, places: Any) -> AsyncIterator[str]:
        lines: asyncio.Queue[dict[str, Any] | BaseException | None] = asyncio.Queue()
        top = head(self.chunk_kind, self.id, self.server.model.name)
        choices: list[Choice] = []

        async def follow(choice: Choice) -> None:
            try:
                async for pieces, scores in self._follow(choice):
                    if pieces or scores:
                        await lines.put(self.part(choice, pieces, scores))
                await lines.put(self.part(choice, [], []))
                await lines.put(None)
            except Exception as why:
                await lines.put(why)

        tasks: list[asyncio.Task[None]] = []
        try:
            choices = self._ask()
            for choice in choices:
                for one in self.opening(choice.index):
                    yield _line({**top, "choices": [one]})
            tasks = [asyncio.create_task(follow(choice)) for choice in choices]
            left = len(tasks)
            while left:
                item = await lines.get()
                if isinstance(item, BaseException):
                    yield _line(error(str(item), "server_error"))
                    return
                if item is None:
                    left -= 1
                else:
                    yield _line({**top, "choices": [item]})
            if self.wish.wants_usage:
                yield _line({**top, "choices": [], "usage": self._usage(choices)})
            self._done(choices)
            yield "data: [DONE]\n\n"
        finally:
            for task in tasks:
                task.cancel()
            for choice in choices:
                choice.ticket.cancel()
            await places.__aexit__(None, None, None)

    def _usage(self, choices: list[Choice]) -> dict[str, int]:
        return usage(sum(len(prompt) for prompt in self.prompts), sum(choice.tokens for choice in choices))

    def _done(self, choices: list[Choice]) -> None:
        pass

    def token(self, token: int) -> dict[str, Any]:
        """A token as probabilities name it."""
        spelled = self.tokenizer.decode_bytes([token])
        return {"token": spelled.decode("utf-8", "replace"), "bytes": list(spelled)}


def _line(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


class Chat(Exchange):
    """POST /v1/chat/completions. Tool calls stand in `parts`, beside `content`, which has the assistant's words alone."""

    kind, chunk_kind, prefix, tools = "chat.completion", "chat.completion.chunk", "chatcmpl", True

    def __init__(self, server: Server, request: Request, wish: ChatRequest, prompts: list[list[int]], messages: list[dict[str, Any]]):
        super().__init__(server, request, wish, prompts)
        self.messages = messages
        self.stops = turn_ends(server.model.tokenizer)
        self.top_logprobs = (wish.top_logprobs or 0) if wish.logprobs else -1

    def _scores(self, scores: Sequence[tuple[int, Scored]]) -> dict[str, Any] | None:
        if self.top_logprobs < 0:
            return None
        return {
            "content": [
                {
                    **self.token(token),
                    "logprob": score.logprob,
                    "top_logprobs": [{**self.token(other), "logprob": value} for other, value in score.best],
                }
                for token, score in scores
            ]
        }

    @staticmethod
    def _parts(pieces: Sequence[Piece]) -> list[dict[str, str]]:
        parts: list[dict[str, str]] = []
        for piece in pieces:
            if parts and parts[-1]["type"] == piece.kind:
                parts[-1]["text"] += piece.text
            else:
                parts.append({"type": piece.kind, "text": piece.text})
        return parts

    def whole(self, choice: Choice) -> dict[str, Any]:
        """See Exchange."""
        parts = self._parts(choice.pieces)
        message: dict[str, Any] = {"role": "assistant", "content": "".join(part["text"] for part in parts if part["type"] == "text")}
        if any(part["type"] != "text" for part in parts):
            message["parts"] = parts
        return {"index": choice.index, "message": message, "logprobs": self._scores(choice.scores), "finish_reason": choice.finish}

    def opening(self, index: int) -> list[dict[str, Any]]:
        """See Exchange."""
        return [{"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}]

    def part(self, choice: Choice, pieces: Sequence[Piece], scores: Sequence[tuple[int, Scored]]) -> dict[str, Any]:
        """See Exchange."""
        delta: dict[str, Any] = {}
        if pieces:
            delta["content"] = "".join(piece.text for piece in pieces if piece.kind == "text")
            if any(piece.kind != "text" for piece in pieces):
                delta["parts"] = self._parts(pieces)
        ended = not pieces and not scores
        return {
            "index": choice.index,
            "delta": delta,
            "logprobs": self._scores(scores) if scores else None,
            "finish_reason": choice.finish if ended else None,
        }

    def _done(self, choices: list[Choice]) -> None:
        if self.server.log:
            for choice in choices:
                self.server.log([*self.messages, {"role": "assistant", "content": self._parts(choice.pieces)}])


class Completion(Exchange):
    """POST /v1/completions."""

    kind, chunk_kind, prefix = "text_completion", "text_completion", "cmpl"

    def __init__(self, server: Server, request: Request, wish: CompletionRequest, prompts: list[list[int]], texts: list[str]):
        super().__init__(server, request, wish, prompts)
        self.texts, self.echo = texts, wish.echo
        self.stops = frozenset({server.model.tokenizer.bos_id})
        self.top_logprobs = -1 if wish.logprobs is None else wish.logprobs

    def _scores(self, scores: Sequence[tuple[int, Scored]]) -> dict[str, Any] | None:
        if self.top_logprobs < 0:
            return None
        return {
            "tokens": [self.token(token)["token"] for token, _ in scores],
            "token_logprobs": [score.logprob for _, score in scores],
            "top_logprobs": [{self.token(other)["token"]: value for other, value in score.best} for _, score in scores],
        }

    def _before(self, choice: Choice) -> str:
        return self.texts[choice.index // self.wish.n] if self.echo else ""

    def whole(self, choice: Choice) -> dict[str, Any]:
        """See Exchange."""
        text = self._before(choice) + "".join(piece.text for piece in choice.pieces)
        return {"index": choice.index, "text": text, "logprobs": self._scores(choice.scores), "finish_reason": choice.finish}

    def opening(self, index: int) -> list[dict[str, Any]]:
        """See Exchange."""
        return [{"index": index, "text": self.texts[index // self.wish.n], "logprobs": None, "finish_reason": None}] if self.echo else []

    def part(self, choice: Choice, pieces: Sequence[Piece], scores: Sequence[tuple[int, Scored]]) -> dict[str, Any]:
        """See Exchange."""
        ended = not pieces and not scores
        return {
            "index": choice.index,
            "text": "".join(piece.text for piece in pieces),
            "logprobs": self._scores(scores) if scores else None,
            "finish_reason": choice.finish if ended else None,
        }
