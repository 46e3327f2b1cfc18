"""The flags of the chat stages. Imports nothing heavy."""

from dataclasses import dataclass
from typing import ClassVar

from nanochat.common.errors import UserError
from nanochat.evals.tasks.registry import check_names, task_dir_of
from nanochat.train.settings import OFF, TrainSettings

OWN = "conversations"
"""Name of the user's own conversations in a mixture."""

MID_MIXTURE = {
    "SmolTalk": 1.0,
    "MMLU": 1.0,
    "GSM8K": 1.0,
    "SpellingBee": 1.0,
    "SimpleSpelling": 1.0,
    "Arithmetic": 1.0,
    "WordProblems": 1.0,
    "Instructions": 1.0,
    "Identity": 1.0,
}
SFT_MIXTURE = {
    "SmolTalk": 0.05,
    "ARC-Easy": 1.0,
    "ARC-Challenge": 1.0,
    "GSM8K": 1.0,
    "SpellingBee": 0.02,
    "SimpleSpelling": 0.01,
    "Arithmetic": 0.05,
    "WordProblems": 0.05,
    "Instructions": 0.05,
    "Identity": 0.5,
}


@dataclass(frozen=True)
class StageSettings(TrainSettings):
    """What every stage after base training has."""

    GROUPS: ClassVar[dict[str, str]] = {
        "Model to start from": "source model_tag max_seq_len",
        "Length of the run": "num_iterations",
        **TrainSettings.GROUPS,
        "Name and tracking": "run usd_per_gpu_hour seed",
    }

    source: str = ""
    """Stage whose model to start from (base, mid, sft, rl, dpo), or a directory of a model or a checkpoint. Default: the stage before."""
    model_tag: str = ""
    """Name of the run to go on with, and of its directory. Default: the run of the newest model that there is to start from."""
    device_batch_size: int = OFF
    """Sequences a GPU handles per pass, at most; -1 for what the stage before had."""
    total_batch_size: int = OFF
    """Tokens of a step, over all ranks and micro-batches; -1 for what the stage before had."""
    max_seq_len: int = OFF
    """Tokens of a row; -1 for the model's context."""
    num_iterations: int = OFF
    """Steps; -1 for as many as --num_epochs takes."""
    eval_tokens: int = 524_288
    """Held-out tokens of an evaluation, or as many as there are."""

    INHERITED: ClassVar[tuple[str, ...]] = ("device_batch_size", "total_batch_size", "max_seq_len")

    def check(self) -> None:
        """Raises UserError for a value that no run can have."""
        super().check()
        for name in ("max_seq_len", "num_iterations"):
            if getattr(self, name) < 1 and getattr(self, name) != OFF:
                raise UserError(f"--{name}={getattr(self, name)}: must be 1 or more, or -1")


@dataclass(frozen=True)
class ChatTrainSettings(StageSettings):
    """What the stages that learn from conversations have."""

    GROUPS: ClassVar[dict[str, str]] = {
        "What is learned": "tasks weights conversations task_dir persona",
        **StageSettings.GROUPS,
        "Length of the run": "num_epochs num_iterations",
    }

    tasks: str = ""
    """Tasks to learn from, with commas between; `none` for --conversations alone. Default: the stage's own list."""
    weights: str = ""
    """How often a pass goes through a task's conversations, as in GSM8K=2,SpellingBee=0.5. Default: the stage's own weights, which
    tasks that are not named keep too."""
    conversations: str = ""
    """Your own conversations, a .jsonl with {"messages": [{"role", "content"}]} in each line; learned along with the tasks. Default:
    none."""
    task_dir: str = ""
    """Directory with local copies of the tasks' datasets, each under its id (openai/gsm8k). Default: the Hugging Face hub."""
    persona: str = ""
    """File that says who the model is; copy nanochat/evals/tasks/persona.toml to begin with. Default: that file itself."""
    num_epochs: float = 1.0
    """Passes over the mixture, which make the steps where --num_iterations is -1."""

    MIXTURE: ClassVar[dict[str, float]] = {}

    def check(self) -> None:
        """Raises UserError for a value that no run can have."""
        super().check()
        if not 0 < self.num_epochs < float("inf"):
            raise UserError(f"--num_epochs={self.num_epochs}: must be more than 0")
        self.mixture()
        task_dir_of(self.task_dir)

    def mixture(self) -> dict[str, float]:
        """The weight of each part. Raises UserError for a task that does not exist, or a weight that is none."""
        names = [name.strip() for name in self.tasks.replace("|", ",").split(",") if name.strip()]
        if names == ["none"]:
            weights = {}
        else:
            check_names(names)
            weights = {name: self.MIXTURE.get(name, 1.0) for name in names or self.MIXTURE}
        if self.conversations:
            weights[OWN] = 1.0
        for item in filter(None, (item.strip() for item in self.weights.split(","))):
            name, _, number = item.partition("=")
            if name not in weights:
                raise UserError(f"--weights: {name!r} is not part of this mixture, which has {', '.join(weights) or 'no task'}")
            try:
                weights[name] = float(number)
            except ValueError:
                raise UserError(f"--weights: {item!r} is not of the form TASK=NUMBER") from None
            if not 0 <= weights[name] < float("inf"):
                raise UserError(f"--weights: {item}: must be 0 or more")
        if not any(weights.values()):
            raise UserError("there is nothing to learn from: give --tasks or --conversations")
        return weights


@dataclass(frozen=True)
class MidTrainSettings(ChatTrainSettings):
    """Midtraining: a base model learns conversation, multiple choice and the tools; the same command again goes on where it stopped."""

    source: str = ""
    """Stage whose model to start from (base, mid, sft, rl, dpo), or a directory of a model or a checkpoint. Default: base."""
    eval_every: int = 150
    """Steps between evaluations on held-out conversations, with one at the end; -1 for never."""
    MIXTURE = MID_MIXTURE


@dataclass(frozen=True)
class SftSettings(ChatTrainSettings):
    """Supervised fine-tuning on the conversations that matter most; the same command again goes on where it stopped."""

    source: str = ""
    """Stage whose model to start from (base, mid, sft, rl, dpo), or a directory of a model or a checkpoint. Default: mid, else base."""
    total_batch_size: int = OFF
    """Tokens of a step, over all ranks and micro-batches; -1 for what the stage before had, at most 65,536 or a row a rank."""
    init_lr_frac: float = 0.02
    warmdown_ratio: float = 1.0
    eval_every: int = 100
    """Steps between evaluations on held-out conversations, with one at the end; -1 for never."""
    MIXTURE = SFT_MIXTURE
