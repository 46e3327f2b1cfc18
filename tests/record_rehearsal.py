"""What the README shows of a rehearsal: `python -m tests.record_rehearsal BASE_DIR rehearsal.log`.

BASE_DIR is what the rehearsal had as NANOCHAT_BASE_DIR, the log what `bash run3b.sh --rehearse` printed. Writes docs/rehearsal.json,
docs/loss.png and docs/chat.png, which `python -m scripts.plan --write_docs` then puts in its place.
"""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, expect, sync_playwright

from nanochat.plan.measurements import today
from nanochat.plan.sizes import parameters
from nanochat.report.machine import facts
from tests.conftest import ROOT, World
from tests.serve.test_page import CHROMIUM, setting
from tests.serve.test_web import serving

STAGES = ("base", "mid", "sft", "rl")
ASKED = ("Hello! Who are you?", "How many r are in strawberry?", "What is 1234 + 4321?")


def main() -> None:
    base, log = map(Path, sys.argv[1:])
    took = re.search(r"^done in (\d+) min (\d+) s", log.read_text(encoding="utf-8"), re.MULTILINE)
    if not took:
        sys.exit(f"{log}: that rehearsal has not come to its end")
    run = base / "runs/d4"
    loss = read(run / "base/base_loss.json")
    scores = {stage: read(run / stage / "chat_eval.json")["tasks"] for stage in STAGES}
    machine = dict(facts())
    record = {
        "date": today(),
        "machine": f"{machine['processor']}, {machine['memory']}",
        "packages": machine["packages"],
        "took_s": 60 * int(took[1]) + int(took[2]),
        "parameters": parameters(4, 4096),
        "val_bpb": loss["val_bpb"],
        "xz_bpb": loss["xz_bpb"],
        "accuracy": {task: {stage: scores[stage][task]["accuracy"] for stage in STAGES} for task in scores["sft"]},
        "best_constant": {task: scores["sft"][task]["best_constant"] for task in scores["sft"]},
        "transcript": [conversation["messages"] for conversation in read(run / "rl/transcript.json")],
    }
    (ROOT / "docs/rehearsal.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    shutil.copyfile(run / "report/loss_tokens.png", ROOT / "docs/loss.png")
    take_picture(World(base), ROOT / "docs/chat.png")


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def take_picture(world: World, path: Path) -> None:
    """The page, with the questions asked of the last model."""
    with serving(world, "--model_tag=d4", "-i", "rl", "-t", "0") as web, sync_playwright() as play:
        page = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]).new_page(viewport={"width": 1100, "height": 780})
        page.goto(web.url)
        setting(page, "#temperature", "0")
        for number, question in enumerate(ASKED, 1):
            page.get_by_label("Your message").fill(question)
            page.keyboard.press("Enter")
            answered(page, number)
        page.get_by_text("Calculator").last.click()
        page.screenshot(path=path)


def answered(page: Page, number: int) -> None:
    expect(page.locator("li.assistant .body")).to_have_count(number, timeout=60_000)
    expect(page.get_by_role("button", name="Stop")).to_be_hidden(timeout=60_000)


if __name__ == "__main__":
    main()
