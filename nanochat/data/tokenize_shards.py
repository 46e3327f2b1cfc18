"""Text shards to token shards: in parallel, in order, and going on after a kill."""

import hashlib
import itertools
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from nanochat.common.console import Progress, say, warn
from nanochat.common.errors import UserError
from nanochat.common.files import atomic_path, remove_leftovers, write_json
from nanochat.common.locks import locked
from nanochat.common.paths import tokenizer_dir, tokens_dir
from nanochat.data.token_shards import DTYPE, INDEX_FILE, TokenIndex, TokenShard, damaged_shards, read_index
from nanochat.tokenizer.tokenizer import Tokenizer

CHUNK_CHARS = 64 * 1024
"""Text handed to a thread at once: large against the cost of handing over, small against a shard's end that all wait for."""

CHUNKS_AHEAD = 4
"""Chunks in work or waiting per thread: bounds the memory."""

FINGERPRINT_BYTES = 64 * 1024


@dataclass(frozen=True)
class Tokenization:
    """Turn all text shards of a source into token shards; those that are there already are kept."""

    data: str | None = None
    """Text to tokenize: python, climbmix, fineweb-edu or path:DIR. Default: climbmix, or the only one that is there."""
    tokenizer: str | None = None
    """Tokenizer, by name, as in python-4096. Default: climbmix-65536, or the only one that is there."""
    num_workers: int = 0
    """Threads that encode; 0 for one a CPU core."""


@dataclass(frozen=True)
class Encoded:
    """Documents as token ids."""

    ids: np.ndarray
    """uint16 of shape (tokens,): each document is bos and its tokens"""
    documents: int
    """number of documents"""
    bytes: int
    """UTF-8 bytes of their text"""


def tokenize(settings: Tokenization) -> None:
    """The command: tokenize a source, and say what came of it. Raises UserError for what is not there or broken."""
    from nanochat.data.defaults import resolve_data, resolve_tokenizer

    if settings.num_workers < 0:
        raise UserError(f"--num_workers={settings.num_workers} must be 0 (one per CPU core) or more")
    data = resolve_data(settings.data)
    name = resolve_tokenizer(settings.tokenizer)
    tokenizer = Tokenizer.from_directory(tokenizer_dir(name))
    start = time.monotonic()
    index, made = tokenize_source(data, name, tokenizer, settings.num_workers or available_cores())
    tokens, text_bytes = sum(shard.tokens for shard in index.shards), sum(shard.bytes for shard in index.shards)
    seconds = time.monotonic() - start
    speed = f" ({sum(shard.tokens for shard in made) / seconds / 1e6:.2f} M tokens/s)" if made else ""
    say(f"token shards of {data}: {len(made)} made{speed}, {len(index.shards) - len(made)} already there; {index.directory} holds")
    for split in ("train", "val"):
        shards = [shard for shard in index.shards if shard.split == split]
        documents = sum(shard.documents for shard in shards)
        say(f"  {split:5} {len(shards):5} shards {documents:12,} documents {sum(shard.tokens for shard in shards):16,} tokens")
    say(f"  {text_bytes / tokens:.2f} bytes per token")


def available_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def tokenize_source(data: str, tokenizer_name: str, tokenizer: Tokenizer, num_workers: int) -> tuple[TokenIndex, list[TokenShard]]:
    """Tokenize the text shards of a source that have no up-to-date token shard; returns the index and what was made now.

    The index is written after each shard, so a kill loses only the one in work. Raises UserError for text that is broken.
    """
    from nanochat.data.text_shards import text_shards

    text = text_shards(data)
    directory = tokens_dir(data, tokenizer.hash)
    made: list[TokenShard] = []
    directory.mkdir(parents=True, exist_ok=True)
    with locked(directory / ".lock", waiting=f"another process is making {directory}: waiting for it"):
        index = _index_so_far(TokenIndex(directory, data, tokenizer_name, tokenizer.hash, tokenizer.vocab_size, ()), text.val, text.train)
        done = {shard.name for shard in index.shards}
        pending = [
            (path, split) for path, split in [(text.val, "val"), *((path, "train") for path in text.train)] if _token_name(path) not in done
        ]
        for shard in make_shards(pending, directory, tokenizer, num_workers):
            made.append(shard)
            index = replace(index, shards=tuple(sorted([*index.shards, shard], key=lambda shard: shard.name)))
            _write_index(index)
    return index, made


def _index_so_far(empty: TokenIndex, val: Path, train: list[Path]) -> TokenIndex:
    """The index with the shards that are still good: their file whole, their text unchanged. What a kill left behind is removed."""
    remove_leftovers(empty.directory)
    if not (empty.directory / INDEX_FILE).exists():
        return empty
    splits = {_token_name(path): (path, "val" if path == val else "train") for path in [val, *train]}
    good, gone, changed = [], [], []
    shards = read_index(empty.directory).shards
    damaged = damaged_shards(empty, shards)
    for shard in shards:
        if shard.name not in splits:
            gone.append(shard)
        elif (_fingerprint(splits[shard.name][0]), splits[shard.name][1]) != (shard.source, shard.split):
            changed.append(shard)
        elif shard.name in damaged:
            say(f"{empty.directory / shard.name} is damaged, {damaged[shard.name]}: making it again")
        else:
            good.append(shard)
    if changed:
        # The text was made anew: token shards whose text is gone are of the old one. Otherwise the text was only deleted to save room.
        say(f"the text of {len(changed)} token shards has changed: making them again")
    else:
        good += [shard for shard in gone if shard.name not in damaged]
        for shard in gone:
            if shard.name in damaged:
                warn(f"{empty.directory / shard.name} is damaged, {damaged[shard.name]}, and its text is not here any more: get that again")
    index = replace(empty, shards=tuple(sorted(good, key=lambda shard: shard.name)))
    _write_index(index)
    return index


def _write_index(index: TokenIndex) -> None:
    value = asdict(index)
    del value["directory"]
    write_json(index.directory / INDEX_FILE, value)


def _token_name(text_path: Path) -> str:
    return text_path.stem + ".bin"


def _fingerprint(path: Path) -> str:
    """Name, size and a hash of the end of a parquet file, where its footer holds the statistics of all its parts."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - FINGERPRINT_BYTES))
        return f"{path.name}:{size}:{hashlib.sha256(file.read()).hexdigest()[:12]}"


def make_shards(pending: list[tuple[Path, str]], directory: Path, tokenizer: Tokenizer, num_workers: int) -> Iterator[TokenShard]:
    """Make the token shard of each (text shard, split) in turn, with progress. Raises UserError for text that is broken."""
    from nanochat.data.text_shards import count_rows

    if not pending:
        return
    documents = sum(count_rows(path) for path, _ in pending)
    with ThreadPoolExecutor(num_workers) as pool, Progress("tokenizing", documents, "documents") as progress:
        for path, split in pending:
            yield _make_shard(path, split, directory, tokenizer, pool, num_workers, progress)


def _make_shard(
    text_path: Path, split: str, directory: Path, tokenizer: Tokenizer, pool: ThreadPoolExecutor, num_workers: int, progress: Progress
) -> TokenShard:
    from nanochat.data.text_shards import iter_texts

    name, source = _token_name(text_path), _fingerprint(text_path)
    digest = hashlib.sha256()
    documents = tokens = text_bytes = 0
    with atomic_path(directory / name) as aside, aside.open("wb") as file:
        for encoded in encode_in_order(tokenizer, itertools.chain.from_iterable(iter_texts(text_path)), pool, num_workers):
            file.write(encoded.ids.data)
            digest.update(encoded.ids.data)
            documents += encoded.documents
            tokens += len(encoded.ids)
            text_bytes += encoded.bytes
            progress.advance(encoded.documents, status=name)
        if not documents:
            raise UserError(f"{text_path} holds no documents: delete it and make the text again")
    return TokenShard(name, split, documents, tokens, text_bytes, digest.hexdigest(), source)


def encode_in_order(tokenizer: Tokenizer, texts: Iterable[str], pool: ThreadPoolExecutor, num_workers: int) -> Iterator[Encoded]:
    """Encode documents by the threads of a pool; chunks come back in the order of the documents.

    Threads, because tiktoken encodes outside the interpreter lock: what is left inside it, reading the text and joining
    arrays, is a small part of the work, and nothing needs to be sent between processes.
    """
    waiting: deque[Future[Encoded]] = deque()
    try:
        for chunk in _chunks(texts):
            waiting.append(pool.submit(encode_documents, tokenizer, chunk))
            if len(waiting) >= num_workers * CHUNKS_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    chunk: list[str] = []
    chars = 0
    for text in texts:
        chunk.append(text)
        chars += len(text)
        if chars >= CHUNK_CHARS:
            yield chunk
            chunk, chars = [], 0
    if chunk:
        yield chunk


def encode_documents(tokenizer: Tokenizer, texts: list[str]) -> Encoded:
    """Documents as one array, each begun by bos."""
    bos = np.array([tokenizer.bos_id], dtype=np.uint32)
    ids = np.concatenate([part for text in texts for part in (bos, tokenizer.encode_to_numpy(text))], dtype=DTYPE, casting="unsafe")
    text_bytes = sum(len(text) if text.isascii() else len(text.encode("utf-8", "replace")) for text in texts)
    return Encoded(ids, len(texts), text_bytes)
