"""What a finished rehearsal must show: `python -m tests.check_rehearsal`, with NANOCHAT_BASE_DIR as it had it.

The little model has learned: on held-out questions tool arithmetic and the short instructions are at least 40 points above the base
model, letter counting is at least 25 points above the best constant answer, reinforcement learning has not made it worse.
"""

import json
import math
import sys
from typing import Any

from nanochat.common.paths import base_dir

CHANCE = 1.64  # standard errors: of a hundred runs that differ by chance alone five differ by more, to one side
RUN = base_dir() / "runs/d4"


def tasks(stage: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RUN / stage / "chat_eval.json").read_text())["tasks"]
    return found


def mean(found: dict[str, Any]) -> tuple[float, float]:
    """The mean accuracy over the tasks, and its variance from having asked only so many questions."""
    shares = [(one["accuracy"], one["total"]) for one in found.values()]
    return sum(p for p, _ in shares) / len(shares), sum(p * (1 - p) / n for p, n in shares) / len(shares) ** 2


def main() -> None:
    base, sft, rl = tasks("base"), tasks("sft"), tasks("rl")
    loss = json.loads((RUN / "base/base_loss.json").read_text())
    gains = {name: sft[name]["accuracy"] - base[name]["accuracy"] for name in ("Arithmetic", "Instructions")}
    letters = sft["SpellingBee"]["accuracy"] - sft["SpellingBee"]["best_constant"]
    (before, before_variance), (after, after_variance) = mean(sft), mean(rl)
    margin = CHANCE * math.sqrt(before_variance + after_variance)
    report = (RUN / "report.md").read_text()
    checks = {
        f"held-out text: {loss['val_bpb']:.3f} bits per byte, xz -9e {loss['xz_bpb']:.3f}": loss["val_bpb"] < loss["xz_bpb"],
        f"Arithmetic {100 * gains['Arithmetic']:.1f} points above the base model": gains["Arithmetic"] >= 0.40,
        f"Instructions {100 * gains['Instructions']:.1f} points above the base model": gains["Instructions"] >= 0.40,
        f"SpellingBee {100 * letters:.1f} points above the best constant answer": letters >= 0.25,
        f"mean after RL {after:.3f}, after SFT {before:.3f} ± {margin:.3f}": after >= before - margin,
        "the report has every stage": all(f"## Training: {stage}" in report for stage in ("base", "mid", "sft", "rl")),
        "nothing is missing": "## What is missing" not in report,
    }
    for what, good in checks.items():
        print(f"{'ok  ' if good else 'FAIL'}  {what}")
    sys.exit(not all(checks.values()))


if __name__ == "__main__":
    main()
