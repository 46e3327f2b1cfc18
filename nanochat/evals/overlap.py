"""Evaluation questions that stand in the training text: 13-gram overlap (as GPT-3 counts it, arXiv 2005.14165, appendix C)."""

import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

N = 13
SHORTEST = 8  # words: a question with fewer is found everywhere and says nothing; up to N it is looked for as a whole
WORD = re.compile(r"[^\W_]+")
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def words(text: str) -> list[str]:
    """Words in lower case, without punctuation."""
    return WORD.findall(text.lower())


def word_numbers(found: list[str]) -> NDArray[np.uint64]:
    """A 64-bit number for each word."""
    numbers = np.fromiter((zlib.crc32(word.encode()) for word in found), dtype=np.uint64, count=len(found))
    return (numbers + np.uint64(1)) * MULTIPLIER


def gram_hashes(numbers: NDArray[np.uint64], n: int) -> NDArray[np.uint64]:
    """A hash of each n neighbouring words, (words − n + 1,): a polynomial in them, modulo 2^64."""
    count = len(numbers) - n + 1
    if count <= 0:
        return np.empty(0, dtype=np.uint64)
    hashes = np.zeros(count, dtype=np.uint64)
    for place in range(n):
        hashes = hashes * MULTIPLIER + (numbers[place : place + count] ^ (numbers[place : place + count] >> np.uint64(29)))
    return hashes


@dataclass(frozen=True)
class Overlap:
    """How many questions stand in the text."""

    questions: int
    found: int
    too_short: int
    """Questions of fewer than 8 words, which were not looked for."""
    by_task: dict[str, tuple[int, int]]
    """Found, and looked for, by task."""
    characters: int
    """Text that was looked through."""

    def to_json(self, text: str) -> dict[str, Any]:
        """As plain values."""
        share = self.found / self.questions if self.questions else 0.0
        by_task = {name: {"found": found, "questions": total} for name, (found, total) in self.by_task.items()}
        counts = {"questions": self.questions, "found": self.found, "share": share, "too_short": self.too_short}
        return {**counts, "n": N, "text": text, "characters": self.characters, "tasks": by_task}


def count_overlap(questions: dict[str, list[str]], texts: Iterable[list[str]]) -> Overlap:
    """Count the questions of each task of which some 13 words in a row stand in the text, given as batches of documents.

    Words are told apart by hashes of 64 bits; of a billion words hardly one question would be found by chance.
    """
    wanted: dict[int, dict[int, list[int]]] = {}  # by length, by hash: numbers of questions
    names: list[str] = []
    too_short = 0
    for name, each in questions.items():
        for question in each:
            numbers = word_numbers(words(question))
            if len(numbers) < SHORTEST:
                too_short += 1
                continue
            length = min(N, len(numbers))
            for value in gram_hashes(numbers, length).tolist():
                wanted.setdefault(length, {}).setdefault(value, []).append(len(names))
            names.append(name)
    looked_for = {length: np.fromiter(sorted(hashes), dtype=np.uint64, count=len(hashes)) for length, hashes in wanted.items()}
    found: set[int] = set()
    characters = 0
    for batch in texts:
        characters += sum(map(len, batch))
        for value, length in _seen(batch, looked_for):
            found.update(wanted[length][value])
    by_task = dict.fromkeys(questions, (0, 0))
    for number, name in enumerate(names):
        hits, total = by_task[name]
        by_task[name] = (hits + (number in found), total + 1)
    return Overlap(len(names), len(found), too_short, by_task, characters)


def _seen(batch: list[str], looked_for: dict[int, NDArray[np.uint64]]) -> Iterator[tuple[int, int]]:
    """Hashes that are looked for and stand in a batch, with their lengths. A border of documents counts as a word of its own."""
    numbers = word_numbers(words(" \x1fborder\x1f ".join(batch)))
    for length, hashes in looked_for.items():
        here = gram_hashes(numbers, length)
        if len(here):
            places = np.minimum(np.searchsorted(hashes, here), len(hashes) - 1)
            for value in np.unique(here[hashes[places] == here]).tolist():
                yield value, length
