"""Tokens of an answer as text, as they come: never half a character, never the beginning of a stop string."""

import codecs
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from nanochat.tokenizer.tokenizer import Tokenizer

Kind = Literal["text", "python", "python_output"]


@dataclass(frozen=True)
class Piece:
    """Some of an answer's text."""

    kind: Kind
    """The assistant's words, a tool call, or what the tool answered."""
    text: str


class TextStream:
    """Turns an answer's tokens into pieces of text; special tokens give none, but say what kind the text after them is."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()):
        self._tokenizer, self._stop = tokenizer, [each for each in stop if each]
        special = tokenizer.special_tokens
        self._kinds: dict[int, Kind] = {special["<|python_start|>"]: "python", special["<|output_start|>"]: "python_output"}
        self._specials = set(special.values())
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._kind: Kind = "text"
        self._held = ""
        self.stopped = False
        """Whether a stop string has come: nothing follows it, and it is not part of the text."""

    def push(self, ids: Sequence[int]) -> list[Piece]:
        """The text that is sure after these tokens too."""
        pieces: list[Piece] = []
        for token in ids:
            if self.stopped:
                break
            if token in self._specials:
                pieces += self._close()
                self._kind = self._kinds.get(token, "text")
            else:
                pieces += self._said(self._decoder.decode(self._tokenizer.decode_bytes([token])))
        return pieces

    def finish(self) -> list[Piece]:
        """What was held back, when nothing more comes."""
        return [] if self.stopped else self._close()

    def _close(self) -> list[Piece]:
        pieces = self._said(self._decoder.decode(b"", final=True))
        self._decoder.reset()
        if self._held and not self.stopped:
            pieces.append(Piece(self._kind, self._held))
        self._held = ""
        return pieces

    def _said(self, text: str) -> list[Piece]:
        """Hold back what may be the beginning of a stop string, which only the assistant's own words can be."""
        if self._kind != "text" or not self._stop:
            return [Piece(self._kind, text)] if text else []
        self._held += text
        found = [place for place in (self._held.find(each) for each in self._stop) if place >= 0]
        if found:
            self.stopped = True
            sure, self._held = self._held[: min(found)], ""
        else:
            kept = max((self._overlap(each) for each in self._stop), default=0)
            sure, self._held = self._held[: len(self._held) - kept], self._held[len(self._held) - kept :]
        return [Piece("text", sure)] if sure else []

    def _overlap(self, stop: str) -> int:
        """Characters at the end of what is held that a stop string begins with."""
        return next((size for size in range(min(len(stop) - 1, len(self._held)), 0, -1) if self._held.endswith(stop[:size])), 0)
