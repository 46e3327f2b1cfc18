"""A script of which every rank but the first finds no dataset: `python -m tests.train.lacking MODULE FLAGS…`."""

import os
import runpy
import sys
from typing import Any

from nanochat.evals.tasks.hub import HubDataset
from nanochat.evals.tasks.task import TaskUnavailable


def _rows(self: HubDataset) -> Any:
    raise TaskUnavailable("429 Too Many Requests")


if __name__ == "__main__":
    module, *flags = [argument for argument in sys.argv[1:] if argument != "--"]
    if os.environ.get("RANK", "0") != "0":
        HubDataset.rows = _rows  # type: ignore[method-assign]
    sys.argv = [module, *flags]
    runpy.run_module(module, run_name="__main__")
