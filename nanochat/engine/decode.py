"""The pass that gives every running row its next token: compiled between attentions, and on a GPU replayed as one CUDA graph."""

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from nanochat.common.console import warn
from nanochat.engine.cache import RowCache, one_query_attention
from nanochat.model.elementwise import rms_norm
from nanochat.model.gpt import GPT, Block

Heads = tuple[Tensor, Tensor, Tensor]

AGREES = 0.25  # between logits within ±15: more than bf16's rounding parts them when sums change their order, less than any fault does
CAPTURED_FROM = 3  # times that a layout has come
GRAPHS = 64  # kept at most
RECOMPILES = 64  # of a piece: every GPU of a server has its own
CAPTURING = threading.Lock()  # one thread at a time


def _between(block: Block, following: Block, x: Tensor, y: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x = block.after_attention(x, y)
    return (x, *following.before_attention(x, cos, sin))


def _last(model: GPT, block: Block, x: Tensor, y: Tensor) -> Tensor:
    logits: Tensor = model.lm_head(rms_norm(block.after_attention(x, y), model.model.eps))
    return logits[:, -1]


@dataclass(frozen=True)
class Pieces:
    """What stands between attentions, and attention of fixed rows, as it is or compiled."""

    first: Callable[..., Heads] = Block.before_attention
    between: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]] = _between
    last: Callable[..., Tensor] = _last
    one_query: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] = one_query_attention

    @classmethod
    def compiled(cls) -> "Pieces":
        """All layers share a graph; one row has graphs of its own, all other numbers of rows share theirs."""

        def compiled(piece: Callable[..., Any]) -> Any:
            return torch.compile(piece, dynamic=True, fullgraph=True)

        return cls(compiled(cls.first), compiled(cls.between), compiled(cls.last), compiled(cls.one_query))


class DecodePass:
    """One token more for each row."""

    def __init__(self, model: GPT, cache: RowCache, compiled: bool):
        """compiled: compile, and go on without where that fails or gives other logits."""
        self.model, self.cache = model, cache
        self.pieces = Pieces.compiled() if compiled else Pieces()
        self._unproven = {True, False} if compiled else set()
        self._thread = 0

    def __call__(self, ids: Tensor) -> Tensor:
        """ids: (B, 1), one for each row of the cache's `extend(1)` → logits (B, V) in float32."""
        if threading.get_ident() != self._thread:  # the compiler's settings are each thread's own
            self._thread = threading.get_ident()
            torch._dynamo.config.recompile_limit = max(RECOMPILES, torch._dynamo.config.recompile_limit)
        alone = ids.size(0) == 1
        if alone in self._unproven:
            self._unproven.remove(alone)
            return self._prove(ids)
        return self._run(ids, self.pieces)

    def _run(self, ids: Tensor, pieces: Pieces) -> Tensor:
        trunk, cache = self.model.model, self.cache
        positions = cache.positions(1)
        cos, sin = trunk.cos[positions], trunk.sin[positions]
        x = rms_norm(trunk.embed_tokens(ids), trunk.eps)
        layers = list(trunk.layers)
        cache.one_query = pieces.one_query
        q, k, v = pieces.first(layers[0], x, cos, sin)
        for number, (block, following) in enumerate(pairwise(layers)):
            x, q, k, v = pieces.between(block, following, x, cache.attend(number, q, k, v), cos, sin)
        return pieces.last(self.model, layers[-1], x, cache.attend(len(layers) - 1, q, k, v))

    def _prove(self, ids: Tensor) -> Tensor:
        """The logits of a pass that is not compiled, with which a compiled one must agree."""
        wanted = self._run(ids, Pieces())
        try:
            _check_same(self._run(ids, self.pieces), wanted)  # writes the same keys and values again
        except Exception as error:  # whatever a compiler may raise
            warn(f"answers are made without compiling, more slowly: {_in_a_line(error)}")
            self.pieces, self._unproven = Pieces(), set()
        return wanted


def _check_same(got: Tensor, wanted: Tensor) -> None:
    apart = float((got - wanted).abs().max())
    if not apart <= AGREES:
        raise RuntimeError(f"its logits are {apart:.3g} apart from those of the plain pass")


def _in_a_line(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"[:300]


@dataclass(frozen=True)
class Captured:
    """A pass that reads its ids and positions from the same memory each time and writes its logits there."""

    replay: Callable[[], None]
    ids: Tensor
    positions: Tensor
    logits: Tensor


class ReplayedPass:
    """A decode pass over a cache of fixed rows, captured when a layout has come a few times, and replayed from then on."""

    def __init__(self, run: DecodePass):
        self._run, self._cache = run, run.cache
        self._captured: dict[object, Captured] = {}
        self._seen: Counter[object] = Counter()
        self._works = True
        self._pool: Any = None
        self._side: Any = None

    def __call__(self, ids: Tensor) -> Tensor:
        """As a DecodePass; the logits hold until the next call."""
        layout = self._cache.layout
        if (found := self._captured.get(layout)) is None:
            logits = self._run(ids)
            self._seen[layout] += 1
            if self._works and self._seen[layout] >= CAPTURED_FROM:
                self._try_to_capture(layout, ids, logits)
            return logits
        found.ids.copy_(ids)
        self._cache.stand_at(found.positions)
        found.replay()
        return found.logits

    def _try_to_capture(self, layout: object, ids: Tensor, wanted: Tensor) -> None:
        try:
            one = self.capture(ids)
            one.replay()
            _check_same(one.logits, wanted)
        except Exception as error:  # whatever a driver may raise
            warn(f"answers are made without CUDA graphs, more slowly: {_in_a_line(error)}")
            self._works = False
            self._captured.clear()
            return
        if len(self._captured) >= GRAPHS:
            self._captured.pop(next(iter(self._captured)))
        self._captured[layout] = one
        self._seen = Counter()

    def capture(self, ids: Tensor) -> Captured:
        """Capture the pass on the present rows."""
        ids, positions = ids.clone(), torch.empty_like(ids)
        self._cache.stand_at(positions)
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        with CAPTURING, torch.cuda.device(ids.device):
            self._side = self._side or torch.cuda.Stream()  # graphs share memory only where they were captured on one stream
            self._side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._side):
                self._run(ids)  # what libraries make at their first call on a stream is not captured
            torch.cuda.current_stream().wait_stream(self._side)
            graph = torch.cuda.CUDAGraph()
            # thread_local: other GPUs of the server go on in their threads.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._side, capture_error_mode="thread_local"):
                logits = self._run(ids)
        return Captured(graph.replay, ids, positions, logits)
