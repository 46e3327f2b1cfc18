"""Letters of words: counting them with the tool, and spelling."""

import random
import re

from nanochat.evals.tasks.made import Made, MadeTask, tool_call, words
from nanochat.evals.tasks.numbers import last_number
from nanochat.tokenizer.conversation import Conversation

LETTERS = "abcdefghijklmnopqrstuvwxyz"
COMPOUND_SHARE = 0.5  # of the words are two words in one, so that there is always one the model has not seen
MOST = 3  # counts from 0 to this are asked for equally often: no constant answer is right often

COUNT_QUESTIONS = (
    "How many {l} are in {w}?",
    "How many {l}s are in {w}?",
    "How many times does {l} occur in {w}?",
    "How often does the letter {l} appear in {w}?",
    "Count the {l} in {w}.",
    "Count the number of {l} in the word {w}.",
    "How many letters {l} does {w} have?",
    "how many {l} in {w}",
    "In the word {w}, how many {l} are there?",
    "What is the number of {l} in {w}?",
)
SPELL_QUESTIONS = (
    "Spell {w}.",
    "Spell the word {w}.",
    "How do you spell {w}?",
    "Can you spell {w}?",
    "Write {w} letter by letter.",
    "spell {w}",
)


def draw_word(rng: random.Random) -> str:
    """A word, or two in one."""
    return rng.choice(words()) + (rng.choice(words()) if rng.random() < COMPOUND_SHARE else "")


def _quoted(rng: random.Random, text: str) -> str:
    return f'"{text}"' if rng.random() < 0.5 else text


class SpellingBee(MadeTask):
    """How often a letter occurs in a word. The tool counts; the model has to hand it the word and the letter."""

    name = "SpellingBee"
    nominal = 80_000

    def make(self, rng: random.Random) -> Made:
        """A word and a letter that occurs 0 to 3 times in it."""
        count = rng.randint(0, MOST)
        while True:
            word = draw_word(rng)
            fitting = [letter for letter in LETTERS if word.count(letter) == count]
            if fitting:
                break
        letter = rng.choice(fitting)
        question = rng.choice(COUNT_QUESTIONS).format(l=_quoted(rng, letter), w=_quoted(rng, word))
        times = "once" if count == 1 else f"{count} times"
        reply = [
            *tool_call(f'"{word}".count("{letter}")', str(count)),
            {"type": "text", "text": f"The letter {letter} occurs {times}: {count}."},
        ]
        return Made(f"{letter} in {word}", question, reply, str(count))

    def correct(self, example: Conversation, reply: str) -> bool:
        """Whether the last number of the reply is the count."""
        return last_number(reply) == float(example["answer"])


class SimpleSpelling(MadeTask):
    """Spelling a word, letter by letter."""

    name = "SimpleSpelling"
    nominal = 80_000

    def make(self, rng: random.Random) -> Made:
        """A word."""
        word = draw_word(rng)
        question = rng.choice(SPELL_QUESTIONS).format(w=_quoted(rng, word))
        return Made(word, question, "-".join(word), "-".join(word))

    def correct(self, example: Conversation, reply: str) -> bool:
        """Whether the reply has these letters and no others, however they are set apart."""
        return re.sub(r"[^a-z]", "", reply.lower()) == example["answer"].replace("-", "")
