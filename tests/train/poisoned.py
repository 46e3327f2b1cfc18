"""Base training in which some samples ruin every step they are in: `python -m tests.train.poisoned FIRST END FLAGS…`."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from nanochat.common.cli import command
from nanochat.data.loader import Batch, Split
from nanochat.train import trainer
from nanochat.train.settings import BaseTrainSettings
from scripts.base_train import main


def poison(first: int, end: int) -> None:
    """Make the weights of the loss infinite for these samples."""
    began = trainer.Trainer.__init__

    def init(self: trainer.Trainer, *args: object, **kwargs: object) -> None:
        began(self, *args, **kwargs)  # type: ignore[arg-type]
        clean = self.batches

        def batches(split: Split, sample: int) -> Iterator[Batch]:
            taken = Path(os.environ["NANOCHAT_BASE_DIR"]) / "taken"
            inner = clean(split, sample)
            try:
                for micro_batch, batch in enumerate(inner):
                    step = sample + micro_batch // split.grad_accum_steps * split.samples_per_step
                    if os.environ.get("RANK", "0") == "0" and micro_batch % split.grad_accum_steps == 0:
                        with taken.open("a") as file:
                            file.write(f"{step}\n")
                    bad = first <= step < end
                    weights = torch.full(batch.ids.shape, float("inf")) if bad else batch.weights
                    yield Batch(batch.ids, batch.targets, batch.divisor, weights)
            finally:
                inner.close()  # type: ignore[attr-defined]

        self.batches = batches

    trainer.Trainer.__init__ = init  # type: ignore[method-assign,assignment]


if __name__ == "__main__":
    arguments = [argument for argument in sys.argv[1:] if argument != "--"]
    poison(int(arguments[0]), int(arguments[1]))
    sys.argv = ["base_train", *arguments[2:]]
    command(BaseTrainSettings, main)
