"""What a model in training says to a few prompts: printed, and kept for the report."""

import json
from collections.abc import Sequence

from nanochat.common.console import say
from nanochat.common.files import append_line
from nanochat.train.run_directory import StageDirectory

SAMPLES_FILE = "samples.jsonl"


def keep_samples(stage: StageDirectory, step: int, prompts: Sequence[str], texts: Sequence[str]) -> None:
    """Print samples and add them to the stage's samples.jsonl, rows {"step", "prompt", "text"}."""
    for prompt, text in zip(prompts, texts, strict=True):
        say(f"sample: {prompt}{text}".replace("\n", "\\n"))
        append_line(stage.path / SAMPLES_FILE, json.dumps({"step": step, "prompt": prompt, "text": text}))
