"""Short instructions whose outcome a program can check."""

import random
import re
from collections.abc import Sequence
from functools import cache

from nanochat.evals.tasks.made import Made, MadeTask, words
from nanochat.tokenizer.conversation import Conversation

ASKED = {
    "reverse": (
        "Reverse the order of these words: {x}",
        "Write these words in reverse order: {x}",
        "Say these words backwards, last word first: {x}",
    ),
    "sort": ("Sort these words alphabetically: {x}", "Put these words in alphabetical order: {x}", "Order these words from A to Z: {x}"),
    "upper": ("Write this in capital letters: {x}", "Make this upper case: {x}", "Put this in capitals: {x}"),
    "lower": ("Write this in small letters: {x}", "Make this lower case: {x}", "Put this without capitals: {x}"),
    "first letter": ("What is the first letter of {x}?", "Which letter does {x} begin with?", "Give the first letter of {x}."),
    "count": ("How many words are these: {x}", "Count the words: {x}", "How many words do you see here: {x}"),
}


def _outcome(what: str, chosen: Sequence[str]) -> tuple[str, str]:
    """What is handed over and what is to come back."""
    given = " ".join(chosen)
    match what:
        case "reverse":
            return given, " ".join(reversed(chosen))
        case "sort":
            return given, " ".join(sorted(chosen))
        case "upper":
            return given, given.upper()
        case "lower":
            return given.upper(), given
        case "first letter":
            return given, given[0]
        case _:
            return given, str(len(chosen))


@cache
def short_words() -> tuple[str, ...]:
    """Words of three letters: what is asked is the instruction, not the spelling."""
    return tuple(word for word in words() if len(word) == 3)


class Instructions(MadeTask):
    """Reverse, sort, change case, first letter, count words."""

    name = "Instructions"
    nominal = 40_000

    def make(self, rng: random.Random) -> Made:
        """An instruction and the words to follow it on."""
        what = rng.choice(list(ASKED))
        many = {"first letter": (1, 1), "count": (1, 8), "upper": (1, 2), "lower": (1, 2)}.get(what, (2, 4))
        given, answer = _outcome(what, rng.sample(short_words(), rng.randint(*many)))
        return Made(f"{what}: {given}", rng.choice(ASKED[what]).format(x=given), answer, answer, {"what": what})

    def correct(self, example: Conversation, reply: str) -> bool:
        """Whether the reply is the outcome: its words, in its case, with whatever stands between."""
        return re.findall(r"\w+", reply) == example["answer"].split()
