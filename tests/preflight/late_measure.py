"""As nanochat.preflight.measure where the second rank is late to have imported torch; a rank that begins without it breaks."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from nanochat.preflight import measure

wanted = json.loads(sys.argv[1])
late, product = Path(wanted["path"]).with_name("late"), measure.product


def together(device: torch.device) -> dict[str, Any]:
    if not late.exists():
        raise RuntimeError("begun without the other rank")
    return product(device)


measure.product = together
if os.environ["RANK"] == "1":
    time.sleep(3)
    late.touch()
measure.main(Path(wanted["path"]), wanted["store"], wanted["import_s"], wanted["patience_s"], False)
