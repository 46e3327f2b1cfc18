"""The report of runs that are whole, half, crashed, and hostile."""

import json
import re
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest

from nanochat.common.markdown import block, cell
from nanochat.report.report import ReportSettings, report
from tests.conftest import World, wrong_request

GPU = "NVIDIA H100 80GB HBM3"


def score(correct: int, total: int = 100) -> dict[str, Any]:
    share = correct / total
    common = {"accuracy": share, "correct": correct, "total": total, "low": share - 0.05, "high": share + 0.05, "chance": 0.25}
    return {**common, "centered": (share - 0.25) / 0.75, "kind": "choice", "best_constant": 0.3, "shots": 5}


def write_stage(run: Path, name: str, steps: int = 40, done: bool = True, **files: Any) -> Path:
    stage = run / name
    stage.mkdir(parents=True)
    rows = []
    for step in range(1, steps + 1):
        row = {
            "step": step,
            "loss": 8.0 - 0.1 * step,
            "lr_scale": 1.0,
            "grad_norm": 1.0,
            "tok_per_sec": 1000.0,
            "mfu": 0.5,
            "mem_gib": 60.0 + step / 100,
        }
        rows.append({**row, "tokens": step * 1000, "elapsed_s": step * 90.0, "step_s": 2.0})
    rows.append({"step": steps, "elapsed_s": steps * 90.0, ("val_bpb" if name == "base" else "val_loss"): 0.9})
    (stage / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    question = {"world_size": 8, "gpu": "H100-80GB"}
    plan = {"question": question, "predicted_peak_gib": 61.0, "predicted_step_s": 1.9, "on_gpu": True}
    usual = {"config": {"identity": {"depth": 38}, "settings": {"usd_per_gpu_hour": 3.0, "matrix_lr": 0.02}}, "step_plan": plan}
    for key, value in {**usual, **files}.items():
        (stage / f"{key}.json").write_text(json.dumps(value))
    if done:
        (stage / "model").mkdir()
        (stage / "model/config.json").write_text("{}")
    return stage


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base dir"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "base dir/runs/d38"


def made() -> str:
    report(ReportSettings())
    return Path("report.md").read_text(encoding="utf-8")


def table_after(text: str, heading: str) -> dict[str, list[str]]:
    """The first table after a heading: its rows by their first cell."""
    lines = text[text.index(heading) :].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([each.strip().replace("\\", "") for each in re.split(r"(?<!\\)\|", line)[1:-1]])
    assert len({len(row) for row in rows}) == 1, rows
    return {row[0]: row[1:] for row in rows}


def colours(png: bytes) -> int:
    """Different rows of bytes in a PNG: a blank picture has one or two."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    at, data = 8, b""
    while at < len(png):
        (size,), kind = struct.unpack(">I", png[at : at + 4]), png[at + 4 : at + 8]
        data += png[at + 8 : at + 8 + size] if kind == b"IDAT" else b""
        at += 12 + size
    width = struct.unpack(">I", png[16:20])[0]
    raw, stride = zlib.decompress(data), width * 4 + 1
    return len({raw[i : i + stride] for i in range(0, len(raw), stride)})


def test_a_whole_run(run: Path) -> None:
    core = {
        "core": 0.21,
        "tasks": {"hellaswag": score(60)},
        "bundle": "x",
        "overlap": {"questions": 50, "found": 2, "share": 0.04, "n": 13, "text": "8 shards"},
    }
    write_stage(run, "base", core=core, base_loss={"val_bpb": 0.8, "xz_bpb": 2.0})
    (run / "base/samples.jsonl").write_text(json.dumps({"step": 40, "prompt": "Once ", "text": "upon a time"}) + "\n")
    chat = {"chatcore": 0.4, "chatcore_tasks": ["MMLU"], "tasks": {"MMLU": score(45)}, "skipped": {"GSM8K": "the hub does not answer"}}
    write_stage(
        run,
        "mid",
        chat_eval=chat,
        mixture={
            "parts": {"MMLU": {"conversations_per_pass": 10, "size": 5, "epochs": 2.0, "too_long_per_pass": 1}},
            "skipped": {"SmolTalk": "no network"},
        },
    )
    parts = [{"type": "python", "text": "1 + 1"}, {"type": "python_output", "text": "2"}, {"type": "text", "text": "It is 2."}]
    transcript = [{"messages": [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": parts}]}]
    write_stage(run, "sft", chat_eval={**chat, "tasks": {"MMLU": score(55)}}, transcript=transcript)
    write_stage(run, "rl", chat_eval=chat)
    text = made()
    summary = table_after(text, "# Report")
    assert summary["base"][:2] == ["done", "60.0 min"]
    assert summary["base"][2] == "$24.00"  # eight GPUs at $3.00 for an hour
    assert summary["base"][3:9] == ["40,000", "4.0000", "0.9000 bits per byte", "50.0%", "60.4", "0.2100"]
    assert summary["all"][1:3] == ["4.0 h", "$96.00"]
    scores = table_after(text, "## Scores")
    assert scores["MMLU"][:3] == ["45.0% (40.0% to 50.0%)", "55.0% (50.0% to 60.0%)", "45.0% (40.0% to 50.0%)"]
    assert scores["MMLU"][4:] == ["30.0%", "100"]
    assert table_after(text, "## CORE")["hellaswag"] == ["60.0% (55.0% to 65.0%)", "25.0%", "0.4667", "100", "5"]
    assert "2 of 50 questions (4.00%) have 13 words in a row" in text
    predicted = table_after(text, "## Predicted against actual")["base"]
    assert predicted[:5] == ["1.900", "2.000", "+5.3%", "61.0", "60.4"]
    missing = text[text.index("## What is missing") : text.index("## Machine")]
    assert "GSM8K: the hub does not answer" in missing
    assert "mid learned without SmolTalk: no network" in missing
    assert "[calculator: 1 + 1][= 2] It is 2." in text
    assert "Once upon a time" in text
    assert "1 longer than a row, left out" in text
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert len(pictures) == 7
    for picture in pictures:
        assert " " not in picture
        assert colours(Path(picture.replace("%20", " ")).read_bytes()) > 20
    in_run = (run / "report.md").read_text()
    assert all((run / picture).exists() for picture in re.findall(r"!\[.*?\]\((.*?)\)", in_run))

    def without_dates(text: str) -> str:
        return re.sub(r"^\d{4}-.*$", "", text, flags=re.MULTILINE)

    assert without_dates(made()) == without_dates(text)


def test_a_crashed_run_says_how_far_it_came(run: Path) -> None:
    write_stage(run, "base", core={"core": 0.1, "tasks": {}})
    stage = write_stage(run, "mid", steps=7, done=False)
    with (stage / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')
    (stage / "mixture.json").write_text("{half")
    text = made()
    missing = text[text.index("## What is missing") : text.index("## Machine")]
    assert "the stage mid is not finished: stopped after step 7" in missing
    assert "the stage sft is not finished: not begun" in missing
    assert "bits per byte" in missing
    assert "mid/metrics.jsonl: 1 of 9 lines could not be read" in missing
    assert "mid/mixture.json is damaged" in missing
    assert table_after(text, "# Report")["sft"][0] == "not begun"


def test_a_run_that_only_began(run: Path) -> None:
    (run / "base").mkdir(parents=True)
    (run / "base/config.json").write_text(json.dumps({"identity": {}, "settings": {}}))
    text = made()
    assert table_after(text, "# Report")["base"][0] == "began"
    assert "CORE was not evaluated" in text


def test_files_that_hold_something_else_are_no_traceback(run: Path) -> None:
    write_stage(run, "base", core={"tasks": {"x": 3}, "core": "high"}, base_loss=[1], step_plan=3)
    write_stage(
        run,
        "sft",
        chat_eval={"tasks": {"MMLU": {"accuracy": 0.5}}, "chatcore": None},
        transcript=[{"messages": 3}, 4],
        mixture={"parts": 1},
    )
    text = made()
    assert "could not be made" in text
    assert "## Machine" in text


def test_what_a_model_wrote_stays_inside_its_block(run: Path) -> None:
    evil = "```\n# Heading\n<script>alert(1)</script> | a | b |\n````\x1b[31m"
    stage = write_stage(run, "base")
    (stage / "samples.jsonl").write_text(json.dumps({"step": 40, "prompt": "p", "text": evil}) + "\n")
    write_stage(run, "sft", transcript=[{"messages": [{"role": "user", "content": evil}, {"role": "assistant", "content": evil}]}])
    text = made()
    outside = re.sub(r"^(`{3,})text\n.*?^\1$", "", text, flags=re.DOTALL | re.MULTILINE)
    assert "<script>" in text
    assert "<script>" not in outside
    assert "\n# Heading" not in outside
    assert "\x1b" not in text
    assert cell("a|b\nc`d<e>") == "a\\|b c\\`d&lt;e&gt;"
    assert block("x").splitlines()[0] == "```text"


def test_the_newest_run_or_the_one_that_is_named(world: World, trained: Path, tmp_path: Path) -> None:
    finished = world.run("scripts.report", "--model_tag=trained", cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert (trained.parents[1] / "report.md").exists()
    assert list((trained.parents[1] / "report").glob("*.png"))
    assert (tmp_path / "report.md").exists()
    shutil.rmtree(trained.parents[1] / "report")
    wrong_request(world.run("scripts.report", "--model_tag=none-such"), "none-such", "trained")
    wrong_request(world.run("scripts.report", NANOCHAT_BASE_DIR=str(tmp_path)), "no run")
