"""Sums, bare and in words, that the model does with the calculator."""

import random

from nanochat.evals.tasks.made import Made, MadeTask, tool_call
from nanochat.evals.tasks.numbers import last_number
from nanochat.tokenizer.conversation import Conversation

SIGNS = {"+": ("+", "plus"), "-": ("-", "minus"), "*": ("*", "times"), "/": ("/", "divided by")}
QUESTIONS = (
    "What is {sum}?",
    "Calculate {sum}.",
    "How much is {sum}?",
    "Compute {sum}.",
    "{sum} = ?",
    "what's {sum}",
    "Please work out {sum}.",
    "{sum}",
)


def number(rng: random.Random, most_digits: int) -> int:
    """A whole number from 1 on with up to that many digits, each length equally often."""
    digits = rng.randint(1, most_digits)
    return rng.randint(1 if digits == 1 else 10 ** (digits - 1), 10**digits - 1)


def two_numbers(rng: random.Random, sign: str) -> tuple[int, int, int]:
    """Two numbers and what the sign makes of them; differences are not negative, quotients are whole."""
    if sign in "+-":
        a, b = number(rng, 4), number(rng, 4)
        return (a, b, a + b) if sign == "+" else (max(a, b), min(a, b), max(a, b) - min(a, b))
    a, b = number(rng, 3), number(rng, 2)
    return (a, b, a * b) if sign == "*" else (a * b, b, a)


def answered(expression: str, answer: int) -> list[dict[str, str]]:
    """The reply: the tool call, then its answer in words."""
    return [*tool_call(expression, str(answer)), {"type": "text", "text": f"The answer is {answer}."}]


class Arithmetic(MadeTask):
    """A sum, a difference, a product or a quotient."""

    name = "Arithmetic"
    nominal = 40_000

    def make(self, rng: random.Random) -> Made:
        """Two numbers and a sign, written or in words."""
        sign = rng.choice("+-*/")
        a, b, answer = two_numbers(rng, sign)
        question = rng.choice(QUESTIONS).format(sum=f"{a} {rng.choice(SIGNS[sign])} {b}")
        return Made(f"{a} {sign} {b}", question, answered(f"{a} {sign} {b}", answer), str(answer))

    def correct(self, example: Conversation, reply: str) -> bool:
        """Whether the last number of the reply is the answer."""
        return last_number(reply) == float(example["answer"])


NAMES = (
    "Anna",
    "Ben",
    "Carla",
    "David",
    "Emma",
    "Felix",
    "Grace",
    "Hugo",
    "Ida",
    "Jonas",
    "Kira",
    "Leo",
    "Mia",
    "Noah",
    "Olga",
    "Paul",
    "Rosa",
    "Sam",
)
THINGS = (
    "apples",
    "books",
    "coins",
    "stamps",
    "marbles",
    "cards",
    "pens",
    "shells",
    "stones",
    "tickets",
    "eggs",
    "cookies",
    "flowers",
    "keys",
)
GROUPS = ("boxes", "bags", "baskets", "shelves", "drawers", "rows", "packs", "jars")
STORIES = {
    "+": (
        "{n} has {a} {t} and buys {b} more. How many {t} does {n} have now?",
        "{n} found {a} {t} in the morning and {b} in the evening. How many {t} is that?",
        "There are {a} {t} on the table and {b} {t} on the floor. How many {t} are there?",
        "{n} has {a} {t}. {m} has {b}. How many {t} do they have together?",
    ),
    "-": (
        "{n} has {a} {t} and gives {b} to {m}. How many {t} does {n} have left?",
        "There were {a} {t}. {b} were sold. How many {t} are left?",
        "{n} has {a} {t} and {m} has {b}. How many more {t} does {n} have than {m}?",
        "{n} had {a} {t} and lost {b}. How many {t} are left?",
    ),
    "*": (
        "There are {a} {t} in each of {b} {g}. How many {t} are there?",
        "{n} buys {a} {t} a day for {b} days. How many {t} does {n} have?",
        "One of the {t} costs {a} cents. How many cents do {b} of them cost?",
        "{b} children bring {a} {t} each. How many {t} do they bring?",
    ),
    "/": (
        "{n} puts {a} {t} into {b} {g}, the same number in each. How many {t} are in each?",
        "{b} friends share {a} {t} equally. How many {t} does each get?",
        "{n} reads {a} pages in {b} days, the same number every day. How many pages is that a day?",
        "{n} cuts a rope of {a} meters into {b} equal pieces. How many meters long is each?",
    ),
}


class WordProblems(MadeTask):
    """A sum in a short story."""

    name = "WordProblems"
    nominal = 40_000

    def make(self, rng: random.Random) -> Made:
        """A story and its numbers."""
        sign = rng.choice("+-*/")
        a, b, answer = two_numbers(rng, sign)
        story = rng.randrange(len(STORIES[sign]))
        n, m = rng.sample(NAMES, 2)
        question = STORIES[sign][story].format(a=a, b=b, n=n, m=m, t=rng.choice(THINGS), g=rng.choice(GROUPS))
        return Made(f"{story}: {a} {sign} {b}", question, answered(f"{a} {sign} {b}", answer), str(answer))

    def correct(self, example: Conversation, reply: str) -> bool:
        """Whether the last number of the reply is the answer."""
        return last_number(reply) == float(example["answer"])
