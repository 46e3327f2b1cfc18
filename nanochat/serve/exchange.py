"""A request and its answers, whole or as a stream, in OpenAI's shape."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from nanochat.engine.batch import turn_ends
from nanochat.engine.engine import Scored
from nanochat.engine.sample import Sampling
from nanochat.engine.text import Piece, TextStream
from nanochat.serve.protocol import ChatRequest, CompletionRequest, Wish, error, head, truncated, usage
from nanochat.serve.serving import Refused, Server
from nanochat.serve.worker import Ticket
from nanochat.tokenizer.conversation import Fitted


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
    extra: dict[str, Any] = {}  # noqa: RUF012
    """What the answer says besides, at its beginning where it is a stream."""

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
        most = self.server.most_tokens(self.wish)
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
                **self.extra,
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
                    yield _line({**top, **self.extra, "choices": [one]})
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
    return f"data: {json.dumps(value)}\n\n"  # ASCII: some clients end a line at U+2028 too


class Chat(Exchange):
    """POST /v1/chat/completions. Tool calls stand in `parts`, beside `content`, which has the assistant's words alone."""

    kind, chunk_kind, prefix, tools = "chat.completion", "chat.completion.chunk", "chatcmpl", True

    def __init__(self, server: Server, request: Request, wish: ChatRequest, fitted: Fitted, messages: list[dict[str, Any]]):
        super().__init__(server, request, wish, [fitted.ids])
        self.messages = messages
        self.extra = {"truncated": truncated(fitted)} if fitted.left_out else {}
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
                if parts := self._parts(choice.pieces):
                    self.server.log([*self.messages, {"role": "assistant", "content": parts}])


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
