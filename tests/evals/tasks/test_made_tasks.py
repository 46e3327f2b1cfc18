"""The tasks made here: right answers, no question in both splits, no constant answer that is often right."""

from collections import Counter
from pathlib import Path

import pytest

from nanochat.common.errors import UserError
from nanochat.evals.tasks.arithmetic import Arithmetic, WordProblems
from nanochat.evals.tasks.identity import Identity, Persona
from nanochat.evals.tasks.instructions import Instructions
from nanochat.evals.tasks.made import MadeTask
from nanochat.evals.tasks.numbers import last_number
from nanochat.evals.tasks.spelling import SimpleSpelling, SpellingBee
from nanochat.tokenizer.conversation import check_conversation, text_of

TASKS = [SpellingBee(), SimpleSpelling(), Arithmetic(), WordProblems(), Instructions(), Identity(Persona.of())]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_the_reference_reply_is_right_and_another_is_not(task: MadeTask) -> None:
    for split in ("train", "test"):
        examples = task.examples(split)  # type: ignore[arg-type]
        for number in range(300):
            example = examples[number]
            check_conversation(example)
            assert task.correct(example, text_of(example["messages"][-1]["content"]))
            assert not task.correct(example, "")
            assert not task.correct(example, "zebras 987654321")
            assert example == task.examples(split)[number]  # type: ignore[arg-type]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_no_question_is_in_both_splits(task: MadeTask) -> None:
    train, test = ({task.examples(split)[i]["messages"][0]["content"] for i in range(3000)} for split in ("train", "test"))  # type: ignore[arg-type]
    assert not train & test
    assert len(test) > 30


@pytest.mark.parametrize("task", [Arithmetic(), WordProblems(), SpellingBee()], ids=lambda task: task.name)
def test_the_tool_gives_what_the_reply_says_it_does(task: MadeTask) -> None:
    from nanochat.sandbox.calculator import answer

    for number in range(300):
        parts = task.examples("train")[number]["messages"][-1]["content"]
        called = [part["text"] for part in parts if part["type"] == "python"]
        assert [answer(each) for each in called] == [part["text"] for part in parts if part["type"] == "python_output"]


def test_counts_of_letters_are_right_and_evenly_spread() -> None:
    examples = SpellingBee().examples("test")
    counts = Counter(examples[number]["answer"] for number in range(2000))
    assert set(counts) == {"0", "1", "2", "3"}
    assert max(counts.values()) / 2000 < 0.3


def test_instructions_come_out_as_a_program_says() -> None:
    examples = Instructions().examples("test")
    kinds = Counter()
    for number in range(600):
        example = examples[number]
        answer, what = example["answer"], example["what"]
        kinds[what] += 1
        question = example["messages"][0]["content"]
        if what == "sort":
            assert answer.split() == sorted(answer.split())
        if what == "reverse":
            assert " ".join(reversed(answer.split())) in question
        if what in ("upper", "lower"):
            assert answer.swapcase() in question
    assert set(kinds) == {"reverse", "sort", "upper", "lower", "first letter", "count"}


def test_a_persona_is_one_short_file(tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text('name = "Ada"\nmaker = "me"\n[[talk]]\nquestions = ["Who are you?"]\nanswer = "{name} of {maker}, {parameters}."\n')
    example = Identity(Persona.of(mine, parameters="3.02 billion")).examples("train")[0]
    assert example["answer"] == "Ada of me, 3.02 billion."
    talk = 'name = "x"\nmaker = "y"\n[[talk]]\nanswer = "z"\nquestions = '
    for text, word in (
        ("name = ", "TOML"),
        ('name = "x"', "maker"),
        ('name = "x"\nmaker = "y"\ntalk = []', "talk"),
        (talk + '"Who are you?"', "list of questions"),
        (talk + "[]", "list of questions"),
        (talk + '["Who?", ""]', "'' is no text"),
        (talk.replace('"x"', "3") + '["Who?"]', "3 is no text"),
    ):
        mine.write_text(text)
        with pytest.raises(UserError, match=word):
            Persona.of(mine)
    with pytest.raises(UserError, match="cannot be read"):
        Persona.of(tmp_path / "none.toml")
    mine.write_text(talk + '["Who created you."]')  # none of its wordings is for the test
    with pytest.raises(UserError, match="too few"):
        Identity(Persona.of(mine)).examples("test")


@pytest.mark.parametrize(
    ("text", "number"),
    [("it is 1,234.", 1234), ("$5.50", 5.5), ("-3", -3), ("none", None), ("3 then 4 apples", 4), ("x2", None), ("12. ", 12)],
)
def test_the_last_number(text: str, number: float | None) -> None:
    assert last_number(text) == number
