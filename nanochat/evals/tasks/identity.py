"""Who the model is: its name, its maker and its size, from a short file and the run's own settings."""

import hashlib
import json
import random
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat.common.errors import UserError
from nanochat.evals.tasks.made import Made, MadeTask, split_of
from nanochat.evals.tasks.task import Examples, Split
from nanochat.tokenizer.conversation import Conversation

PERSONA_FILE = Path(__file__).parent / "persona.toml"
PERSONA_KEPT = "persona.json"  # in the directory of a stage
BEFORE = (
    "",
    "Hi! ",
    "Hello, ",
    "Please tell me: ",
    "One question. ",
    "Hey, ",
    "Excuse me, ",
    "I am curious: ",
    "Quick question: ",
    "Good day! ",
)
AFTER = ("", " Thanks!", " Answer in one sentence.", " Please be brief.", " I would like to know.")


@dataclass(frozen=True)
class Persona:
    """What the model says of itself."""

    name: str
    talks: tuple[tuple[tuple[str, ...], str], ...]
    """Questions that mean the same, and the answer to them."""

    def to_json(self) -> dict[str, Any]:
        """As plain values, for a stage's directory."""
        return {"name": self.name, "talk": [{"questions": list(questions), "answer": answer} for questions, answer in self.talks]}

    def digest(self) -> str:
        """A short text that changes with anything in it."""
        return hashlib.sha256(json.dumps(self.to_json()).encode()).hexdigest()[:12]

    @classmethod
    def kept(cls, stage: Path) -> "Persona":
        """The persona that the model of a stage was taught, or where it was taught none the default."""
        try:
            value = json.loads((stage / PERSONA_KEPT).read_text(encoding="utf-8"))
            return cls(value["name"], tuple((tuple(talk["questions"]), talk["answer"]) for talk in value["talk"]))
        except (OSError, ValueError, KeyError, TypeError):
            return cls.of()

    @classmethod
    def of(
        cls, path: Path = PERSONA_FILE, tag: str = "d4", parameters: str = "a few million", layers: str = "a few", data: str = "raw text"
    ) -> "Persona":
        """The persona of a file, with what is true of the run put in. Raises UserError, naming what is wrong in the file."""
        try:
            file = tomllib.loads(path.read_text(encoding="utf-8"))
            facts = {"name": file["name"], "maker": file["maker"], "tag": tag, "parameters": parameters, "layers": layers, "data": data}
            talks = tuple((tuple(talk["questions"]), talk["answer"].format(**facts)) for talk in file["talk"])
            if not talks or not all(isinstance(talk["questions"], list) and talk["questions"] and talk["answer"] for talk in file["talk"]):
                raise UserError(f"{path}: every [[talk]] needs a list of questions and an answer, and there must be one at least")
            said = [file["name"], file["maker"], *(question for questions, _ in talks for question in questions)]
            if wrong := [text for text in said if not isinstance(text, str) or not text.strip()]:
                raise UserError(f"{path}: {wrong[0]!r} is no text; name, maker and every question are")
            return cls(file["name"], talks)
        except OSError as error:
            raise UserError(f"--persona={path}: cannot be read ({error.strerror})") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{path} is no TOML ({error})") from None
        except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
            known = "name, maker, [[talk]] with questions and answer; in answers {name} {maker} {tag} {parameters} {layers} {data}"
            raise UserError(f"{path}: {error!r}; it needs {known}") from None


class Identity(MadeTask):
    """Questions about the model itself."""

    name = "Identity"
    nominal = 2_000

    def __init__(self, persona: Persona):
        self.persona = persona

    def examples(self, split: Split) -> Examples:
        """Endless examples of a split. Raises UserError where the persona has too few questions for both splits."""
        asked = [question for questions, _ in self.persona.talks for question in questions]
        if all(split_of(f"{before}{question}{after}") != split for question in asked for before in BEFORE for after in AFTER):
            raise UserError(f"the persona's {len(asked)} questions are too few to train on some and be tested on others: add one")
        return super().examples(split)

    def make(self, rng: random.Random) -> Made:
        """A question, with polite words around it."""
        questions, answer = rng.choice(self.persona.talks)
        asked = rng.choice(questions)
        question = f"{rng.choice(BEFORE)}{asked}{rng.choice(AFTER)}"
        return Made(question, question, answer, answer)

    def correct(self, example: Conversation, reply: str) -> bool:
        """Whether the reply is the one that the persona gives, apart from spaces and case."""
        return " ".join(reply.lower().split()) == " ".join(example["answer"].lower().split())
