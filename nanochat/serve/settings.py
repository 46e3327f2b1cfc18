"""The flags that the terminal and the server share. Imports nothing heavy."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import tyro

from nanochat.common.errors import UserError

if TYPE_CHECKING:
    from nanochat.engine.sample import Sampling

STAGES = ("dpo", "rl", "sft", "mid")
"""Stages whose models can be talked to, the best first."""


@dataclass(frozen=True)
class TalkSettings:
    """Which model to talk to, and how it chooses its words."""

    GROUPS: ClassVar[dict[str, str]] = {
        "Model": "model source model_tag",
        "Answers": "max_tokens temperature top_k top_p min_p repetition_penalty",
        "Speed": "precision int8 compile guesses",
    }

    model: str = ""
    """A model directory, or one on the Hugging Face hub (OWNER/NAME, OWNER/NAME@REVISION). Default: the newest that was trained here."""
    source: Annotated[str, tyro.conf.arg(aliases=["-i"])] = ""
    """Stage whose model to take: sft, mid, rl, dpo or base. Default: the newest of the chat stages."""
    model_tag: Annotated[str, tyro.conf.arg(aliases=["-g"])] = ""
    """Run whose model to take. Default: the newest."""
    temperature: Annotated[float, tyro.conf.arg(aliases=["-t"])] = 0.6
    """Randomness of answers, 0 or more; 0 for the likeliest token each time, 1 for the model's own probabilities."""
    top_k: Annotated[int, tyro.conf.arg(aliases=["-k"])] = 50
    """Choose among this many likeliest tokens; 0 for all."""
    top_p: float = 1.0
    """Choose among the likeliest tokens that together have this probability, more than 0; 1 for all."""
    min_p: float = 0.0
    """Choose among tokens of at least this share, from 0 to 1, of the likeliest one's probability; 0 for all."""
    repetition_penalty: float = 1.0
    """How much less likely what stands there already is made, from 0.01 to 100; 1 for no change."""
    max_tokens: Annotated[int, tyro.conf.arg(aliases=["-m"])] = 512
    """Tokens that an answer may take, at most."""
    precision: str = "auto"
    """Number format of the weights: fp32, bf16, or auto for what suits this machine."""
    int8: bool = False
    """Keep the weights in eight bits: half or a quarter of the memory, and faster, with slightly other answers."""
    compile: bool = True
    """Compile the model before a conversation or for the server: seconds at the start, and faster from then on."""
    guesses: int = 0
    """Tokens guessed ahead of a lone answer, from what stands there already: exact, and faster where text repeats itself; 0 for none."""

    def check(self) -> None:
        """Raises UserError for a value that means nothing."""
        self.sampling().check()
        if self.max_tokens < 1:
            raise UserError(f"--max_tokens={self.max_tokens}: must be 1 or more")
        if self.precision not in ("auto", "fp32", "bf16"):
            raise UserError(f"--precision={self.precision}: one of auto, fp32, bf16")
        if self.guesses < 0:
            raise UserError(f"--guesses={self.guesses}: must be 0 or more")
        if self.source and self.source not in (*STAGES, "base"):
            raise UserError(f"--source={self.source}: one of {', '.join(STAGES)}, base")
        if self.model and (self.source or self.model_tag):
            raise UserError("--model names the model; leave out --source and --model_tag, or it")

    def sampling(self) -> "Sampling":
        """How tokens are chosen."""
        from nanochat.engine.sample import Sampling

        return Sampling(self.repetition_penalty, self.temperature, self.top_k, self.top_p, self.min_p)
