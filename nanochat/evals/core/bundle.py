"""A bundle of in-context tasks on disk: core.yaml says which, eval_meta_data.csv how well guessing does, eval_data/ holds the questions."""

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nanochat.common.errors import UserError

Kind = Literal["multiple_choice", "schema", "language_modeling"]

CORE_FILE, META_FILE, DATA_DIR = "core.yaml", "eval_meta_data.csv", "eval_data"
SMALL = Path(__file__).with_name("small")


@dataclass(frozen=True)
class Question:
    """One question: a context and a continuation for each choice; language modelling has a single one."""

    contexts: tuple[str, ...]
    continuations: tuple[str, ...]
    gold: int
    """Which choice is right."""

    @property
    def text(self) -> str:
        """What is asked with its right answer, for looking for it in training text."""
        return f"{self.contexts[self.gold]} {self.continuations[self.gold]}"


@dataclass(frozen=True)
class CoreTask:
    """A task of a bundle."""

    name: str
    kind: Kind
    shots: int
    """Solved questions before each one that is asked."""
    delimiter: str
    """Between a context and its continuation."""
    chance: float
    """Accuracy of guessing."""
    questions: list[Question]


def open_bundle(directory: Path) -> list[CoreTask]:
    """The tasks of a bundle, read and checked wholly. Raises UserError, naming the file and the line, for what is missing or wrong."""
    import yaml

    path = directory / CORE_FILE
    try:
        listed = yaml.safe_load(path.read_text(encoding="utf-8", errors="replace"))["icl_tasks"]
        chances = _chances(directory / META_FILE)
        if not isinstance(listed, list) or not listed:
            raise UserError(f"{path}: icl_tasks is no list of tasks")
        return [_task(directory, entry, chances) for entry in listed]
    except FileNotFoundError as error:
        raise UserError(f"the bundle {directory} is not whole: {error.filename} is missing") from None
    except OSError as error:
        raise UserError(f"the bundle {directory} cannot be read: {error.filename}: {error.strerror}") from None
    except csv.Error as error:
        raise UserError(f"{directory / META_FILE} is damaged: {error}") from None
    except KeyError as error:
        raise UserError(f"{path}: {error} is missing") from None
    except (yaml.YAMLError, RecursionError, TypeError, ValueError):
        raise UserError(f"{path} is damaged, or no list of tasks under icl_tasks") from None


def _chances(path: Path) -> dict[str, float]:
    """Accuracy of guessing by task, from percent."""
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        rows = csv.DictReader(file)
        if not {"Eval Task", "Random baseline"} <= set(rows.fieldnames or ()):
            raise UserError(f"{path}: there are no columns 'Eval Task' and 'Random baseline'")
        found = {}
        for row in rows:
            try:
                found[row["Eval Task"]] = float(row["Random baseline"]) / 100
            except (ValueError, TypeError):  # TypeError: a line that ends before that column
                raise UserError(f"{path}, line {rows.line_num}: the baseline {row['Random baseline']!r} is no number") from None
        return found


def _task(directory: Path, entry: dict[str, Any], chances: dict[str, float]) -> CoreTask:
    name, kind, where = entry["label"], entry["icl_task_type"], directory / CORE_FILE
    if kind not in READERS:
        raise UserError(f"{where}: {name} is of type {kind!r}; {', '.join(READERS)} are known")
    if name not in chances:
        raise UserError(f"{directory / META_FILE}: there is no line for {name}")
    if not 0 <= chances[name] < 1:
        raise UserError(f"{directory / META_FILE}: the baseline of {name}, {chances[name]:.0%}, is not between 0 and 100 %")
    shots, uri = entry.get("num_fewshot", 0), entry["dataset_uri"]
    shots = shots[0] if isinstance(shots, list) and shots else shots
    if type(shots) is not int or shots < 0:
        raise UserError(f"{where}: num_fewshot of {name} is {shots!r}, no number of solved questions")
    delimiter = entry.get("continuation_delimiter", " ")
    if not isinstance(delimiter, str):
        raise UserError(f"{where}: continuation_delimiter of {name} is {delimiter!r}, no text")
    path = directory / DATA_DIR / str(uri)
    if not path.is_file() and path.exists():
        raise UserError(f"{where}: dataset_uri of {name} is {uri!r}, no file of questions")
    questions = []
    with path.open(encoding="utf-8", errors="surrogateescape") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                line.encode()
                question = READERS[kind](json.loads(line))
                "".join((*question.contexts, *question.continuations)).encode()
            except UnicodeEncodeError:
                raise UserError(f"{path}, line {number}: no text in UTF-8") from None
            except json.JSONDecodeError as error:
                raise UserError(f"{path}, line {number}: no JSON ({error.msg})") from None
            except KeyError as error:
                raise UserError(f"{path}, line {number}: no question of type {kind}, {error} is missing") from None
            except (TypeError, AttributeError, ValueError, RecursionError):
                raise UserError(f"{path}, line {number}: no question of type {kind}") from None
            if not 0 <= question.gold < len(question.contexts):
                raise UserError(
                    f"{path}, line {number}: answer key {question.gold} is out of range, there are {len(question.contexts)} choices"
                )
            questions.append(question)
    if len(questions) <= shots:
        raise UserError(f"{path}: {len(questions)} questions are too few for {shots} solved ones before each")
    return CoreTask(name, kind, shots, delimiter, chances[name], questions)


def _of(row: dict[str, Any], name: str, kind: type) -> Any:
    """A field of a row. Raises KeyError where it is missing, TypeError where it is of another type."""
    if type(row[name]) is not kind:
        raise TypeError(name)
    return row[name]


def _multiple_choice(row: dict[str, Any]) -> Question:
    choices = tuple(str(choice) for choice in _of(row, "choices", list))
    return Question((row["query"].strip(),) * len(choices), choices, _of(row, "gold", int))


def _schema(row: dict[str, Any]) -> Question:
    contexts = tuple(context.strip() for context in _of(row, "context_options", list))
    return Question(contexts, (row["continuation"].strip(),) * len(contexts), _of(row, "gold", int))


def _language_modeling(row: dict[str, Any]) -> Question:
    return Question((row["context"].strip(),), (row["continuation"].strip(),), 0)


READERS: dict[str, Callable[[dict[str, Any]], Question]] = {
    "multiple_choice": _multiple_choice,
    "schema": _schema,
    "language_modeling": _language_modeling,
}
