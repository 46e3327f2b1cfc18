"""Bytes per token of a tokenizer by kind of text, beside well-known ones."""

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat.common.console import say, show_table
from nanochat.tokenizer.samples import SAMPLES
from nanochat.tokenizer.tokenizer import Tokenizer

REFERENCES = ("gpt2", "cl100k_base")
REFERENCE_TIMEOUT_S = 10.0

CountTokens = Callable[[str], int]


@dataclass(frozen=True)
class TokenizerEvaluation:
    """Print how many bytes of each kind of text a token holds (more is better), beside GPT-2's and GPT-4's tokenizers."""

    tokenizer: str | None = None
    """Tokenizer, by name, as in python-4096. Default: climbmix-65536, or the only one that is there."""
    data: str | None = None
    """Text whose training and validation shards are looked at too. Default: climbmix, or the only one that is there."""


def evaluate(directory: Path, data_texts: Mapping[str, Sequence[str]], timeout_s: float = REFERENCE_TIMEOUT_S) -> None:
    """Print the table for the tokenizer in `directory` on the samples and on `data_texts`, documents by kind."""
    tokenizer = Tokenizer.from_directory(directory)
    counters: dict[str, CountTokens] = {f"{directory.name} ({tokenizer.vocab_size:,})": lambda text: len(tokenizer.encode_to_numpy(text))}
    references = reference_encodings(REFERENCES, timeout_s)
    for name, encoding in references.items():
        counters[f"{name} ({encoding.n_vocab:,})"] = _counter(encoding)
    texts = {**{kind: [text] for kind, text in SAMPLES.items()}, **data_texts}
    show_table(["bytes per token of", "bytes", *counters], bytes_per_token(texts, counters))
    if missing := [name for name in REFERENCES if name not in references]:
        say(f"{' and '.join(missing)} not at hand (neither in tiktoken's cache nor fetched within {timeout_s:.0f} s)")


def _counter(encoding: Any) -> CountTokens:
    return lambda text: len(encoding.encode_to_numpy(text, disallowed_special=()))


def bytes_per_token(texts: Mapping[str, Sequence[str]], counters: Mapping[str, CountTokens]) -> list[list[str]]:
    """A row per kind of text: its name, its UTF-8 bytes, and the bytes per token of each tokenizer."""
    rows = []
    for kind, documents in texts.items():
        size = sum(len(text.encode()) for text in documents)
        rows.append([kind, f"{size:,}", *(f"{size / sum(map(count, documents)):.2f}" for count in counters.values())])
    return rows


def first_bytes(batches: Iterable[list[str]], limit: int = 1_000_000) -> list[str]:
    """The first documents of a shard, `limit` bytes of UTF-8 or a little more; a longer document is cut."""
    documents: list[str] = []
    size = 0
    for texts in batches:
        for text in texts:
            documents.append(text[:limit])
            size += len(documents[-1].encode())
            if size >= limit:
                return documents
    return documents


def reference_encodings(names: Sequence[str], timeout_s: float) -> dict[str, Any]:
    """Those of tiktoken's own encodings that its cache holds or that can be fetched within `timeout_s`.

    tiktoken downloads without a timeout, so it does so in threads that are left behind when they take too long.
    """
    from tiktoken import Encoding
    from tiktoken_ext.openai_public import ENCODING_CONSTRUCTORS  # type: ignore[import-untyped]

    found: dict[str, Any] = {}

    def load(name: str) -> None:
        try:
            found[name] = Encoding(**ENCODING_CONSTRUCTORS[name]())
        except Exception:  # of requests, of the cache, of the disk: in every case it is not at hand
            return

    threads = [threading.Thread(target=load, args=[name], daemon=True) for name in names]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + timeout_s
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    loaded = dict(found)
    return {name: loaded[name] for name in names if name in loaded}
