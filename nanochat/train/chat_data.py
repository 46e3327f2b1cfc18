"""The mixture that a chat stage learns from: which parts can be had, made into rows."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nanochat.common.console import say, warn
from nanochat.common.errors import UserError
from nanochat.common.paths import named_path
from nanochat.data.conversation_file import ConversationFile
from nanochat.data.mixture import EndlessPart, FinitePart, Mixture, Part
from nanochat.data.rendered import keep, open_kept, render
from nanochat.evals.tasks.identity import PERSONA_FILE, Persona
from nanochat.evals.tasks.registry import TaskOptions, find_tasks, task_dir_of
from nanochat.evals.tasks.task import ENDLESS, Examples, Split, Task, TaskUnavailable
from nanochat.parallel.ranks import Ranks
from nanochat.plan import sizes
from nanochat.tokenizer.conversation import Conversation, Renderer
from nanochat.train.chat_settings import OWN, ChatTrainSettings
from nanochat.train.run_directory import StageDirectory
from nanochat.train.source import SourceModel

HELD_OUT = 256  # conversations of a task that an evaluation looks at, at most


def count_text(parameters: int) -> str:
    """A number of parameters as one says it: 3.02 billion, 5.2 million."""
    value, unit = (parameters / 1e9, "billion") if parameters >= 1e9 else (parameters / 1e6, "million")
    return f"{value:.3g} {unit}"


def persona_of(file: str, source: SourceModel, depth: int, vocab_size: int) -> Persona:
    """Who the model is, with the sizes of this run."""
    return Persona.of(
        named_path(file) if file else PERSONA_FILE,
        tag=source.tag,
        parameters=count_text(sizes.parameters(depth, vocab_size)),
        layers=str(depth),
        data=str(source.identity.get("data", "raw text")),
    )


def options_of(task_dir: str, persona: Persona, allow_unsafe_execution: bool = False) -> TaskOptions:
    """What tasks are made with."""
    return TaskOptions(task_dir_of(task_dir), persona, allow_unsafe_execution)


@dataclass(frozen=True)
class ChatData:
    """What a chat stage learns from, and what is held out of it."""

    train: Mixture
    held_out: Mixture | None
    """None where no part has anything to hold out."""
    skipped: dict[str, str]
    """Tasks that cannot be had, with the reason."""

    @classmethod
    def of(cls, s: ChatTrainSettings, persona: Persona, renderer: Renderer, stage: StageDirectory, r: Ranks) -> "ChatData":
        """Open every part of the mixture; what cannot be had is left out with a warning, and stays out when the run is resumed.

        Raises UserError where a part of a resumed run cannot be had any more, and for what is wrong in a file.
        """
        wanted = {name: weight for name, weight in s.mixture().items() if weight}
        tasks = {task.name: task for task in find_tasks([name for name in wanted if name != OWN], options_of(s.task_dir, persona))}
        kept = r.from_first(lambda: _kept(stage))
        skipped: dict[str, str] = dict(kept["skipped"]) if kept else {}
        train: list[Part] = []
        held_out: list[Part] = []
        for name, weight in wanted.items():
            if name in skipped:
                warn(f"{name} was left out when this run began ({skipped[name]}) and stays so")
                continue
            if name == OWN:
                conversations = open_kept(r.from_first(partial(_keep_own, s.conversations, renderer)))
                train.append(FinitePart(name, max(1, round(weight * len(conversations))), conversations, s.seed))
                continue
            try:
                parts = _parts_of(tasks[name], weight, s.seed, renderer, r)
            except TaskUnavailable as error:
                if kept:
                    raise UserError(f"this run learns from {name}, which cannot be had now: {error}") from None
                skipped[name] = str(error)
                warn(f"{name} is left out: {error}")
                continue
            train.append(parts[0])
            held_out.append(parts[1])
        _check_kept(kept, train)
        mixture = Mixture(train, s.max_seq_len, s.seed, renderer.tokenizer.bos_id)
        return cls(mixture, Mixture(held_out, s.max_seq_len, s.seed, renderer.tokenizer.bos_id) if held_out else None, skipped)

    def record(self, num_rows: int) -> dict[str, Any]:
        """What the mixture is, for mixture.json and the report."""
        left_out = self.train.too_long()
        passes = num_rows / self.train.rows_per_pass
        parts = {
            part.name: {
                "conversations_per_pass": part.per_pass,
                "size": part.size,
                "epochs": passes * part.per_pass / part.size if part.size else None,
                "tokens": _tokens(part),
                "too_long_per_pass": left_out[part.name][0],
            }
            for part in self.train.parts
        }
        return {"parts": parts, "skipped": self.skipped, "rows_per_pass": self.train.rows_per_pass, "passes": passes}


def _keep_own(path: str, renderer: Renderer) -> Path:
    own = ConversationFile(named_path(path))
    return keep(renderer, own, OWN, own.fingerprint())


def _kept(stage: StageDirectory) -> dict[str, Any] | None:
    """What the mixture was when the run began; None for a run that begins now."""
    return stage.frozen("mixture.json", {}) or None if stage.checkpoints.exists() else None


def _tokens(part: Part) -> int | None:
    return len(part.conversations.ids) if isinstance(part, FinitePart) else None


def _check_kept(kept: dict[str, Any] | None, parts: list[Part]) -> None:
    """Raises UserError where a run that goes on would learn from other conversations than it began with."""
    before = kept["parts"] if kept else {}
    for part in parts:
        if (was := before.get(part.name)) and (was["size"], was["tokens"]) != (part.size, _tokens(part)):
            raise UserError(
                f"the conversations of {part.name} are no longer those that this run began with ({was['size']:,} of {was['tokens']:,} "
                f"tokens then, {part.size:,} of {_tokens(part):,} now): bring them back, or begin anew under another --model_tag"
            )


def _parts_of(task: Task, weight: float, seed: int, renderer: Renderer, r: Ranks) -> tuple[Part, Part]:
    """What is learned of a task, and what is held out. Only the first rank asks the hub; what it gets is shared as files."""

    def part(split: Split, weight: float, nominal: int, most: int) -> Part:
        def keep_finite() -> Path | None:
            examples = task.examples(split)
            if len(examples) == ENDLESS:
                return None
            fingerprint = task.fingerprint(split)
            assert fingerprint is not None
            return keep(renderer, First(examples, most), task.name, f"{fingerprint} {most}")

        if place := r.from_first(keep_finite):
            conversations = open_kept(place)
            return FinitePart(task.name, max(1, round(weight * len(conversations))), conversations, seed)
        examples = task.examples(split)
        return EndlessPart(task.name, max(1, round(weight * nominal)), lambda first, count: render(renderer, examples, first, count))

    return part("train", weight, task.nominal, ENDLESS), part("test", 1.0, HELD_OUT, HELD_OUT)


@dataclass(frozen=True)
class First:
    """The first few of some examples."""

    examples: Examples
    most: int

    def __len__(self) -> int:
        return min(len(self.examples), self.most)

    def __getitem__(self, number: int) -> Conversation:
        return self.examples[number]


def say_mixture(record: dict[str, Any], fill: float, num_iterations: int) -> None:
    """What is learned from, how often, and what is left out."""
    say(
        f"{num_iterations:,} steps, {record['passes']:.2f} passes of {record['rows_per_pass']:,} rows over the mixture; "
        f"rows are {fill:.1%} full"
    )
    for name, part in record["parts"].items():
        often = "never the same twice" if part["size"] is None else f"{part['epochs']:.2f} epochs of {part['size']:,}"
        long = f"; {part['too_long_per_pass']:,} are longer than a row and left out" if part["too_long_per_pass"] else ""
        say(f"  {name}: {part['conversations_per_pass']:,} conversations a pass, {often}{long}")
