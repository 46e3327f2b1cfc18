"""The HTTP API in OpenAI's shape, and the page."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nanochat import __version__
from nanochat.common.errors import UserError
from nanochat.serve.exchange import Chat, Completion
from nanochat.serve.protocol import ChatRequest, CompletionRequest, Wish, error
from nanochat.serve.serving import Refused, Server
from nanochat.serve.worker import EngineFailed
from nanochat.tokenizer.conversation import Renderer, check_conversation

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
FIELD = re.compile("[a-z_]+")
NO_KEY = "the API key is missing or wrong: send it as `Authorization: Bearer KEY`"
DISCARDED = 8  # times the limit of a body that are read and thrown away


class Guard:
    """Asks for a name of this server and for the key, limits bodies, adds the headers that keep a browser safe, counts requests."""

    def __init__(self, app: ASGIApp, server: Server):
        self.app, self.limit, self.meters, self.knows = app, server.limits.body_bytes, server.meters, server.knows
        self.hosts = server.hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
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

        if why := self.hosts.refuse(headers):
            await JSONResponse(error(why, "invalid_request_error", "misdirected_request"), 421)(scope, receive, guarded)
            return
        if scope["path"].startswith("/v1/") and not self.knows(headers.get(b"authorization", b"")):
            body = error(NO_KEY, "authentication_error", "invalid_api_key")
            await JSONResponse(body, 401, {"WWW-Authenticate": "Bearer"})(scope, receive, guarded)
            return
        said = headers.get(b"content-length", b"0")
        if said.isdigit() and int(said) > self.limit:
            left = DISCARDED * self.limit  # a client that is cut off while it sends does not read why
            while left > 0 and (message := await receive()).get("more_body"):
                left -= len(message["body"])
            body = error(f"the body has {int(said):,} bytes; {self.limit:,} are taken at most", "invalid_request_error")
            await JSONResponse(body, 413)(scope, receive, guarded)
            return
        await self.app(scope, counted, guarded)


KNOWN = {*FILES, "/health", "/metrics", "/v1/models", "/v1/chat/completions", "/v1/completions"}


def make_app(server: Server) -> FastAPI:
    """The ASGI application: the API and the page."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        for worker in server.model.workers:
            await asyncio.to_thread(worker.close)

    app = FastAPI(title="nanochat", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(Guard, server=server)

    @app.exception_handler(Refused)
    async def refused(_: Request, why: Refused) -> JSONResponse:
        headers = {"Retry-After": RETRY_AFTER_S} if why.status in (429, 503) else None
        return JSONResponse(why.body, why.status, headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, why: RequestValidationError) -> JSONResponse:
        first = why.errors()[0]
        named = [each for each in first["loc"] if isinstance(each, int) or FIELD.fullmatch(each)]  # the others are pydantic's own
        where = "" if first["type"] == "json_invalid" else ".".join(str(each) for each in named if each != "body")
        return JSONResponse(error(f"{where}: {first['msg']}" if where else first["msg"], "invalid_request_error", None, where or None), 422)

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, why: HTTPException) -> JSONResponse:
        return JSONResponse(error(str(why.detail), "invalid_request_error"), why.status_code, why.headers)

    @app.exception_handler(EngineFailed)
    async def failed(_: Request, why: EngineFailed) -> JSONResponse:
        return JSONResponse(error(str(why), "server_error"), 500)

    described_model = {"id": server.model.name, "object": "model", "created": server.model.created, "owned_by": "nanochat"}
    described_model |= {"context": server.model.context}

    def serve(path: str, name: str, kind: str) -> None:
        @app.api_route(path, methods=["GET", "HEAD"], include_in_schema=False)
        async def _file() -> FileResponse:
            return FileResponse(PAGE / name, media_type=kind, headers={"Cache-Control": "no-cache"})

    for path, (name, kind) in FILES.items():
        serve(path, name, kind)

    @app.get("/health")
    async def health() -> JSONResponse:
        """Whether requests are taken."""
        return JSONResponse({"status": "stopping" if server.draining else "ok"}, 503 if server.draining else 200)

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Figures for Prometheus."""
        server.meters.load.set(sum(worker.load for worker in server.model.workers))
        server.meters.cache.set(sum(worker.engine.cache.bytes for worker in server.model.workers))
        return Response(generate_latest(server.meters.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The model that is served."""
        return {"object": "list", "data": [described_model]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        """The same, by its name."""
        server.let_in(Wish(model=name))
        return described_model

    @app.post("/v1/chat/completions", response_model=None)
    async def chat(body: ChatRequest, request: Request) -> Response:
        """Answer a conversation."""
        server.let_in(body)
        messages = [one.plain() for one in body.messages]
        try:
            check_conversation({"messages": messages})
        except UserError as why:
            raise Refused(422, str(why), param="messages") from None
        if messages[-1]["role"] != "user":
            raise Refused(422, "the last message is not the user's: there is nothing to answer", param="messages")
        try:
            fitted = Renderer(server.model.tokenizer).fitted(
                messages, server.model.context, server.most_tokens(body) if body.truncation == "auto" else 1
            )
        except UserError as why:
            raise Refused(400, f"{why}; nothing was cut", code="context_length_exceeded", param="messages") from None
        if fitted.left_out and body.truncation == "disabled":
            message = f"this has {fitted.tokens:,} tokens; the model takes {server.model.context:,}, its answer included; nothing was cut"
            raise Refused(400, message, code="context_length_exceeded", param="messages")
        return await Chat(server, request, body, fitted, messages).respond()

    @app.post("/v1/completions", response_model=None)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Go on with a text."""
        server.let_in(body)
        texts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
        encoded = await asyncio.to_thread(lambda: [server.model.tokenizer.encode(text) for text in texts])
        prompts = [[server.model.tokenizer.bos_id, *ids] for ids in encoded]
        return await Completion(server, request, body, prompts, texts).respond()

    described = app.openapi()["components"]["schemas"]
    for request in ("ChatRequest", "CompletionRequest"):
        described[request]["properties"]["model"]["enum"] = ["", server.model.name]
    return app
