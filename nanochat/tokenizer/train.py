"""Training a tokenizer on text."""

import contextlib
import glob
import logging
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nanochat.common.console import PLAIN_INTERVAL_S, Progress, say, warn
from nanochat.common.errors import UserError
from nanochat.common.files import atomic_path, read_json, remove, write_json
from nanochat.common.locks import locked
from nanochat.common.paths import tokenizer_dir
from nanochat.tokenizer.special import MAX_VOCAB_SIZE, MIN_VOCAB_SIZE, SPECIAL_TOKENS, SPLIT_PATTERN
from nanochat.tokenizer.tokenizer import Tokenizer

TRAINING_FILE = "training.json"

PIECE_CHARS = 100_000
"""Longer texts are cut: a run of a million spaces outgrows the stack of the split pattern."""


@dataclass(frozen=True)
class TokenizerTraining:
    """Train a tokenizer on the training shards of a text source."""

    data: str | None = None
    """Text to train on: python, climbmix, fineweb-edu or path:DIR. Default: climbmix, or the only one that is there."""
    vocab_size: int = MAX_VOCAB_SIZE
    """Entries of the vocabulary, the nine special tokens among them: 265 to 65,536."""
    max_chars: int = 2_000_000_000
    """Characters to train on, at most."""
    doc_cap: int = 10_000
    """Characters of one document that are used, so that no single one weighs too much."""


def train_tokenizer(texts: Iterator[str], vocab_size: int) -> Tokenizer:
    """A BPE tokenizer of exactly `vocab_size` entries, the special tokens among them.

    Raises UserError when the size is out of range, or when the text has too little variety to fill it.
    """
    import rustbpe

    check_vocab_size(vocab_size)
    wanted = vocab_size - len(SPECIAL_TOKENS)
    trainer = rustbpe.Tokenizer()
    with Progress("merging", wanted - 256, "merges") as progress, _merges_shown(progress):
        trainer.train_from_iterator(_pieces(texts), wanted, pattern=SPLIT_PATTERN)
    ranks = {bytes(token): rank for token, rank in trainer.get_mergeable_ranks()}
    if len(ranks) < wanted:
        reached = len(ranks) + len(SPECIAL_TOKENS)
        raise UserError(
            f"too little text for a vocabulary of {vocab_size:,}: it gives {reached:,} entries; "
            f"take more text, or --vocab_size={reached} or smaller"
        )
    return Tokenizer.from_ranks(ranks)


def _pieces(texts: Iterator[str]) -> Iterator[str]:
    for text in texts:
        for start in range(0, len(text), PIECE_CHARS):
            yield text[start : start + PIECE_CHARS]


@contextlib.contextmanager
def _merges_shown(progress: Progress) -> Iterator[None]:
    """Show how far rustbpe is: it tells so only in log messages, `Progress: 12% (460/3831 merges) …`."""

    class Show(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if match := re.search(r"\((\d+)/\d+ merges\)", record.getMessage()):
                progress.advance(int(match[1]) - progress.done)

    logger, handler = logging.getLogger("rustbpe"), Show()
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


def check_vocab_size(vocab_size: int) -> None:
    """Raise UserError unless the size holds every byte and the special tokens, and fits uint16."""
    if vocab_size > MAX_VOCAB_SIZE:
        raise UserError(f"--vocab_size={vocab_size} is too large: token ids are 16 bits, so at most {MAX_VOCAB_SIZE}")
    if vocab_size < MIN_VOCAB_SIZE:
        raise UserError(
            f"--vocab_size={vocab_size} is too small: the 256 bytes and the {len(SPECIAL_TOKENS)} special tokens need {MIN_VOCAB_SIZE}"
        )


class TrainingText:
    """The documents of batches, each cut at `doc_cap` characters, `max_chars` in all; counts what was used."""

    def __init__(self, batches: Iterable[list[str]], max_chars: int, doc_cap: int):
        self.batches, self.max_chars, self.doc_cap = batches, max_chars, doc_cap
        self.documents = self.chars = 0

    def __iter__(self) -> Iterator[str]:
        said = time.monotonic()
        for texts in self.batches:
            for text in texts:
                if self.chars >= self.max_chars:
                    return
                used = text[: min(self.doc_cap, self.max_chars - self.chars)]
                self.documents += 1
                self.chars += len(used)
                yield used
            if time.monotonic() - said >= PLAIN_INTERVAL_S:
                said = time.monotonic()
                say(f"reading text: {self.chars:,} characters of at most {self.max_chars:,}")


def make_tokenizer(settings: TokenizerTraining, data: str, batches: Iterable[list[str]]) -> None:
    """Train and save the tokenizer `DATA-VOCAB` on batches of documents of the text `data`, unless it is there already.

    Raises UserError for wrong settings and for too little text.
    """
    check_vocab_size(settings.vocab_size)
    for flag in ("max_chars", "doc_cap"):
        if getattr(settings, flag) < 1:
            raise UserError(f"--{flag}={getattr(settings, flag)} must be at least 1")
    directory = tokenizer_dir(f"{data}-{settings.vocab_size}")
    directory.parent.mkdir(parents=True, exist_ok=True)
    busy = f"another process is training the tokenizer {directory.name}; waiting for it to finish"
    with locked(directory.with_name(f".{directory.name}.lock"), waiting=busy):
        _make_alone(settings, directory, batches)


def _make_alone(settings: TokenizerTraining, directory: Path, batches: Iterable[list[str]]) -> None:
    name = directory.name
    for left in directory.parent.glob(f".{glob.escape(name)}.*.tmp"):  # of a run that was killed
        remove(left)
    if directory.exists():
        Tokenizer.from_directory(directory)
        say(f"tokenizer {name} is already there: {directory} (to train it anew, remove that directory)")
        _warn_of_other_settings(directory, settings)
        return
    text = TrainingText(batches, settings.max_chars, settings.doc_cap)
    say(f"training tokenizer {name} on at most {settings.max_chars:,} characters")
    start = time.monotonic()
    tokenizer = train_tokenizer(iter(text), settings.vocab_size)
    seconds = time.monotonic() - start
    with atomic_path(directory) as aside:
        tokenizer.save(aside)
        record = {"max_chars": settings.max_chars, "doc_cap": settings.doc_cap, "documents": text.documents, "chars": text.chars}
        write_json(aside / TRAINING_FILE, record)
    say(
        f"tokenizer {name}: {tokenizer.vocab_size:,} entries from {text.chars:,} characters "
        f"of {text.documents:,} documents in {seconds:.1f} s, hash {tokenizer.hash}, at {directory}"
    )


def _warn_of_other_settings(directory: Path, settings: TokenizerTraining) -> None:
    """Say where the settings that a tokenizer was trained with differ from those asked for now, in what they select."""
    try:
        used = read_json(directory / TRAINING_FILE)
        differing = [used["doc_cap"] != settings.doc_cap and f"--doc_cap={used['doc_cap']}, not {settings.doc_cap}"]
        was_cut = used["chars"] >= used["max_chars"]
        if settings.max_chars < used["chars"] or (was_cut and settings.max_chars != used["max_chars"]):
            differing.append(f"--max_chars={used['max_chars']}, not {settings.max_chars}")
    except (OSError, ValueError, KeyError, TypeError):
        return
    if any(differing):
        warn(f"it was trained with {' and '.join(each for each in differing if each)}")
