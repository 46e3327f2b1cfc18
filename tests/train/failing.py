"""Base training in which one rank fails alone: `python -m tests.train.failing RANK WHERE FLAGS…`."""

import os
import sys
from typing import Any, NoReturn

from nanochat.common.cli import command
from nanochat.common.errors import UserError
from nanochat.train.settings import BaseTrainSettings
from scripts.base_train import main

WHERE = {  # a function of the run, and what goes wrong in it
    "tokens": ("nanochat.train.base", "read_index", UserError("these token shards are not here")),
    "step": ("nanochat.train.trainer", "accumulate_gradients", RuntimeError("a loader's fault")),
    "save": ("torch.distributed.checkpoint", "async_save", MemoryError("no memory for a copy")),
}

if __name__ == "__main__":
    arguments = [argument for argument in sys.argv[1:] if argument != "--"]
    if os.environ["RANK"] == arguments[0]:
        import importlib

        module, name, error = WHERE[arguments[1]]

        def fail(*_args: Any, **_kwargs: Any) -> NoReturn:
            raise error

        setattr(importlib.import_module(module), name, fail)
    sys.argv = ["base_train", *arguments[2:]]
    command(BaseTrainSettings, main)
