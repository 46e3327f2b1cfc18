"""An engine in a thread of its own, and answers from it as they come, for asyncio."""

import asyncio
import contextlib
import queue
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from nanochat.common.console import warn
from nanochat.engine.engine import Answer, Engine, Finish, Scored


@dataclass(frozen=True)
class News:
    """What an answer has said since the last news."""

    ids: list[int]
    scores: list[Scored | None]
    finish: Finish | None
    """How it ended; None while it goes on."""


class EngineFailed(RuntimeError):
    """The engine broke off all its answers."""


class Ticket:
    """A question put to a worker; to be used in the event loop that it was made in."""

    def __init__(self, worker: "Worker"):
        self._worker = worker
        self._loop = asyncio.get_running_loop()
        self._news: asyncio.Queue[News | EngineFailed] = asyncio.Queue()
        self.answer: Answer | None = None
        self.sent = 0

    async def news(self) -> AsyncIterator[News]:
        """What it says, to its end. Raises EngineFailed when it breaks off."""
        while True:
            item = await self._news.get()
            if isinstance(item, EngineFailed):
                raise item
            yield item
            if item.finish is not None:
                return

    def cancel(self) -> None:
        """Give it up: its place is free within a step. Nothing happens when it has ended."""
        self._worker.forget(self)

    def tell(self, item: News | EngineFailed) -> None:
        """Called by the worker's thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._news.put_nowait, item)


class Worker:
    """Steps an engine for as long as it has anything to do."""

    def __init__(self, make: Callable[[], Engine]):
        """make: makes the engine, and makes it anew after a failure."""
        self._make, self.engine = make, make()
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._tickets: list[Ticket] = []
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    @property
    def load(self) -> int:
        """Answers that are made or wait."""
        return len(self._tickets) + self._inbox.qsize()

    def ask(self, prompt: list[int], max_new_tokens: int, sampling: Any, **options: Any) -> Ticket:
        """Put a question, with the options of `Engine.add`; call it within the event loop that is to hear the answer."""
        ticket = Ticket(self)

        def begin() -> None:
            ticket.answer = self.engine.add(prompt, max_new_tokens, sampling, **options)
            self._tickets.append(ticket)

        self._inbox.put(begin)
        return ticket

    def forget(self, ticket: Ticket) -> None:
        """Give a ticket's answer up."""

        def end() -> None:
            if ticket in self._tickets:
                assert ticket.answer
                self.engine.cancel(ticket.answer)
                self._report()

        self._inbox.put(end)

    def close(self) -> None:
        """Stop the thread; what is not answered yet breaks off."""
        self._inbox.put(None)
        self._thread.join()

    def _work(self) -> None:
        while True:
            try:
                while True:
                    action = self._inbox.get(block=not self.engine.busy)
                    if action is None:
                        return self._fail("the server is stopping")
                    action()
                    self._report()
            except queue.Empty:
                pass
            try:
                self.engine.step()
            except Exception as error:  # out of memory, say: those who wait are told, and the next ones find an engine that works
                warn(f"the engine failed: {type(error).__name__}: {error}")
                self._fail("the model failed on this request or on one beside it")
                self.engine = self._make()
            self._report()

    def _report(self) -> None:
        for ticket in list(self._tickets):
            one = ticket.answer
            assert one
            if len(one.ids) > ticket.sent or one.finish is not None:
                ticket.tell(News(one.ids[ticket.sent :], one.scores[ticket.sent :], one.finish))
                ticket.sent = len(one.ids)
                if one.finish is not None:
                    self._tickets.remove(ticket)

    def _fail(self, why: str) -> None:
        for ticket in self._tickets:
            ticket.tell(EngineFailed(why))
        self._tickets.clear()
