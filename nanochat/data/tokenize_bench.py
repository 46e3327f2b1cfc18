"""How fast text becomes a token shard, against tiktoken's own batch encoding with as many threads."""

import contextlib
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from json import dumps
from pathlib import Path

from nanochat.common.console import say
from nanochat.common.errors import UserError
from nanochat.common.paths import tokenizer_dir
from nanochat.data.tokenize_shards import available_cores, make_shards
from nanochat.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class TokenizeBench:
    """Time the making of token shards, from parquet files to checksummed files, against tiktoken on text that is in memory."""

    data: str | None = None
    """Text to use: python, climbmix, fineweb-edu or path:DIR. Default: climbmix, or the only one that is there."""
    tokenizer: str | None = None
    """Tokenizer, by name, as in python-4096. Default: climbmix-65536, or the only one that is there."""
    num_workers: int = 0
    """Threads for both; 0 for one a CPU core."""
    num_shards: int = 5
    """Training shards to measure with, at most."""
    repeats: int = 3
    """Times that both are measured, in turn; the medians are compared."""
    json: bool = False
    """Print one JSON object instead of lines."""


def bench(settings: TokenizeBench) -> None:
    """Print tokens per second of both, and their ratio. Raises UserError for what is not there."""
    from nanochat.data.defaults import resolve_data, resolve_tokenizer
    from nanochat.data.text_shards import iter_texts, text_shards

    if settings.num_shards < 1 or settings.repeats < 1 or settings.num_workers < 0:
        raise UserError("--num_shards and --repeats must be at least 1, --num_workers at least 0")
    name = resolve_tokenizer(settings.tokenizer)
    data = resolve_data(settings.data)
    tokenizer = Tokenizer.from_directory(tokenizer_dir(name))
    paths = text_shards(data).train[: settings.num_shards]
    num_workers = settings.num_workers or available_cores()
    texts = [text for path in paths for batch in iter_texts(path) for text in batch]
    ours, tiktokens = [], []
    with contextlib.redirect_stdout(sys.stderr):
        for _ in range(settings.repeats):
            tiktokens.append(_tiktoken_tok_per_s(tokenizer, texts, num_workers))
            ours.append(_our_tok_per_s(tokenizer, paths, num_workers))
    result = {
        "tok_per_s": round(statistics.median(ours)),
        "tiktoken_tok_per_s": round(statistics.median(tiktokens)),
        "ratio": round(statistics.median(ours) / statistics.median(tiktokens), 3),
        "num_workers": num_workers,
        "data": data,
        "tokenizer": name,
        "num_shards": len(paths),
    }
    if settings.json:
        print(dumps(result))
        return
    say(
        f"{len(paths)} shards of {data}, {name}, {num_workers} threads: {result['tok_per_s']:,} tokens/s from parquet to token shard, "
        f"{result['tiktoken_tok_per_s']:,} by tiktoken's encode_ordinary_batch, ratio {result['ratio']:.2f}"
    )


def _tiktoken_tok_per_s(tokenizer: Tokenizer, texts: list[str], num_workers: int) -> float:
    start = time.perf_counter()
    tokens = sum(map(len, tokenizer.encoding.encode_ordinary_batch(texts, num_threads=num_workers)))
    return (tokens + len(texts)) / (time.perf_counter() - start)


def _our_tok_per_s(tokenizer: Tokenizer, paths: list[Path], num_workers: int) -> float:
    with tempfile.TemporaryDirectory() as directory:
        start = time.perf_counter()
        shards = make_shards([(path, "train") for path in paths], Path(directory), tokenizer, num_workers)
        tokens = sum(shard.tokens for shard in shards)
        return tokens / (time.perf_counter() - start)
