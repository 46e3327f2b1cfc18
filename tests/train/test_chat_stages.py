"""The stages after base training as a person runs them: one after the other, cut off, on two processes, with wrong requests."""

import json
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from nanochat.model.directory import load_model
from nanochat.tokenizer.conversation import Renderer
from tests.conftest import ROOT, World, wrong_request

BASE = ("--depth=2", "--max_seq_len=192", "--device_batch_size=2", "--total_batch_size=768", "--precision=fp32", "--no-compile")
QUIET = ("--precision=fp32", "--no-compile", "--sample_every=-1")
MADE = ("--tasks=SpellingBee,Arithmetic,Identity", "--weights=SpellingBee=0.002,Arithmetic=0.004,Identity=0.05")
MID = (*QUIET, *MADE, "--total_batch_size=768", "--num_iterations=12", "--save_every=4", "--eval_every=6", "--eval_tokens=1536")


def rows_of(world: World, tag: str, stage: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (world.base / "runs" / tag / stage / "metrics.jsonl").read_text().splitlines()]


def losses(world: World, tag: str, stage: str) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in rows_of(world, tag, stage) if "loss" in row}


@pytest.fixture(scope="module")
def chat(world: World) -> World:
    """The world with a base run `talk` and its mid and sft stages."""
    quiet = ("--eval_every=-1", "--sample_every=-1")
    for module, *args in (
        ("scripts.base_train", *BASE, *quiet, "--num_iterations=4", "--model_tag=talk"),
        ("scripts.mid_train", *MID, "--model_tag=talk"),
        ("scripts.chat_sft", *QUIET, *MADE, "--num_iterations=3", "--sample_every=3", "--model_tag=talk"),
    ):
        finished = world.run(module, *args)
        assert finished.returncode == 0, finished.stderr
    return world


def copy_of_base(world: World, tag: str) -> None:
    shutil.copytree(world.base / "runs/talk/base", world.base / "runs" / tag / "base")


def test_each_stage_goes_on_from_the_one_before_and_inherits(chat: World) -> None:
    mid, sft = (json.loads((chat.base / f"runs/talk/{stage}/config.json").read_text()) for stage in ("mid", "sft"))
    assert mid["identity"]["source"] == "base"
    assert sft["identity"]["source"] == "mid"
    assert mid["settings"]["device_batch_size"] == sft["settings"]["device_batch_size"] == 2
    assert sft["settings"]["total_batch_size"] == 768
    assert mid["settings"]["max_seq_len"] == 192
    mid_losses = losses(chat, "talk", "mid")
    assert mid_losses[12] < 0.7 * mid_losses[1]
    assert losses(chat, "talk", "sft")[1] < mid_losses[1]
    rows = rows_of(chat, "talk", "mid")
    assert [row["step"] for row in rows if "val_loss" in row] == [6, 12]
    assert rows[-1]["val_loss"] < next(row["val_loss"] for row in rows if "val_loss" in row)
    mixture = json.loads((chat.base / "runs/talk/mid/mixture.json").read_text())
    assert set(mixture["parts"]) == {"SpellingBee", "Arithmetic", "Identity"}
    assert mixture["parts"]["SpellingBee"]["conversations_per_pass"] == 160
    assert mixture["passes"] == pytest.approx(12 * 4 / mixture["rows_per_pass"])


def test_a_transcript_and_a_model_that_transformers_talks_with(chat: World) -> None:
    from transformers import AutoTokenizer

    transcript = json.loads((chat.base / "runs/talk/sft/transcript.json").read_text())
    assert len(transcript) == 5
    assert all(one["messages"][0]["role"] == "user" for one in transcript)
    directory = chat.base / "runs/talk/sft/model"
    _, tokenizer = load_model(directory, torch.device("cpu"))
    conversation = {"messages": [{"role": "user", "content": "How many r are in strawberry?"}]}
    theirs = AutoTokenizer.from_pretrained(directory).apply_chat_template(
        conversation["messages"], add_generation_prompt=True, return_dict=True
    )
    assert theirs["input_ids"] == Renderer(tokenizer).prompt(conversation)
    assert "SpellingBee" in (directory / "README.md").read_text()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_cut_off_and_started_again_the_losses_are_the_same(chat: World, number: int) -> None:
    tag = f"midcut{number}"
    copy_of_base(chat, tag)
    metrics = chat.base / "runs" / tag / "mid/metrics.jsonl"
    command = chat.arguments("scripts.mid_train", *MID, f"--model_tag={tag}")
    process = subprocess.Popen(command, cwd=ROOT, env=chat.environment(), stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (metrics.exists() and metrics.read_text().count("\n") >= 7) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(number)
    process.communicate(timeout=60)
    finished = chat.run("scripts.mid_train", *MID, f"--model_tag={tag}")
    assert finished.returncode == 0, finished.stderr
    assert losses(chat, tag, "mid") == losses(chat, "talk", "mid")


def test_two_processes_learn_the_same_though_they_hold_other_numbers_of_targets(chat: World) -> None:
    copy_of_base(chat, "midtwo")
    finished = chat.run("scripts.mid_train", *MID, "--sample_every=5", "--model_tag=midtwo", nproc=2)
    assert finished.returncode == 0, finished.stderr
    assert losses(chat, "midtwo", "mid") == pytest.approx(losses(chat, "talk", "mid"), abs=1e-4)
    other = [row["val_loss"] for row in rows_of(chat, "midtwo", "mid") if "val_loss" in row]
    assert other == pytest.approx([row["val_loss"] for row in rows_of(chat, "talk", "mid") if "val_loss" in row], abs=1e-4)
    smaller = (*(flag for flag in MID if "device" not in flag), "--device_batch_size=1")
    copy_of_base(chat, "midsmall")
    finished = chat.run("scripts.mid_train", *smaller, "--model_tag=midsmall")
    assert finished.returncode == 0, finished.stderr
    assert losses(chat, "midsmall", "mid") == pytest.approx(losses(chat, "talk", "mid"), abs=1e-4)


RL = (*QUIET, "--tasks=Arithmetic,SpellingBee", "--examples_per_step=4", "--num_samples=4", "--max_new_tokens=12", "--device_batch_size=4")


def test_reinforcement_learning_runs_resumes_and_is_the_same_on_two_processes(chat: World) -> None:
    run = chat.base / "runs/talk/rl"
    finished = chat.run(
        "scripts.chat_rl", *RL, "--num_iterations=3", "--save_every=1", "--eval_every=3", "--eval_examples=6", "--model_tag=talk"
    )
    assert finished.returncode == 0, finished.stderr
    whole = rows_of(chat, "talk", "rl")
    steps = [row for row in whole if "loss" in row]
    assert all({"reward", "pass_at_1", "pass_at_4", "answer_tokens", "finished"} <= row.keys() for row in steps)
    assert {"Arithmetic", "SpellingBee"} <= whole[-1].keys()
    shutil.rmtree(run / "model")
    for path in sorted((run / "checkpoints").glob("step_*"))[1:]:
        shutil.rmtree(path)
    again = chat.run(
        "scripts.chat_rl", *RL, "--num_iterations=3", "--save_every=1", "--eval_every=3", "--eval_examples=6", "--model_tag=talk"
    )
    assert again.returncode == 0, again.stderr
    assert "going on after step 2" in again.stdout
    assert [row["loss"] for row in rows_of(chat, "talk", "rl") if "loss" in row] == [row["loss"] for row in steps]
    shutil.rmtree(run)
    both = chat.run("scripts.chat_rl", *RL, "--num_iterations=2", "--eval_every=-1", "--model_tag=talk", nproc=2)
    assert both.returncode == 0, both.stderr
    for row, other in zip([row for row in rows_of(chat, "talk", "rl") if "loss" in row], steps, strict=False):
        assert row["loss"] == pytest.approx(other["loss"], abs=1e-4)
        assert row["reward"] == other["reward"]


def test_preferences_pull_the_model_towards_what_was_chosen(chat: World, tmp_path: Path) -> None:
    pairs = [{"prompt": f"Say {i}.", "chosen": f"It is {i}.", "rejected": "No, never."} for i in range(6)]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    flags = (*QUIET, f"--preferences={file}", "--pairs_per_step=3", "--num_iterations=6", "--init_lr_frac=0.05", "--max_seq_len=64")
    finished = chat.run("scripts.chat_dpo", *flags, "--save_every=2", "--model_tag=talk")
    assert finished.returncode == 0, finished.stderr
    rows = [row for row in rows_of(chat, "talk", "dpo") if "loss" in row]
    assert rows[0]["loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert rows[-1]["loss"] < 0.68
    assert rows[-1]["preferred"] == 1.0
    run = chat.base / "runs/talk/dpo"
    shutil.rmtree(run / "model")
    shutil.rmtree(sorted((run / "checkpoints").glob("step_*"))[-1])
    again = chat.run("scripts.chat_dpo", *flags, "--save_every=2", "--model_tag=talk")
    assert again.returncode == 0, again.stderr
    assert [row["loss"] for row in rows_of(chat, "talk", "dpo") if "loss" in row] == [row["loss"] for row in rows]
    shutil.rmtree(run)
    both = chat.run("scripts.chat_dpo", *flags, "--pairs_per_step=2", "--model_tag=talk", nproc=2)
    assert both.returncode == 0, both.stderr
    assert rows_of(chat, "talk", "dpo")[0]["loss"] == pytest.approx(np.log(2), abs=1e-6)


def test_own_conversations_are_learned_and_what_is_too_long_is_counted(chat: World, tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "What is the password?"}, {"role": "assistant", "content": "It is swordfish."}]
    long = [{"role": "user", "content": "word " * 300}, {"role": "assistant", "content": "yes"}]
    file = tmp_path / "mine.jsonl"
    file.write_text(json.dumps({"messages": talk}) + "\n" + json.dumps({"messages": long}) + "\n")
    copy_of_base(chat, "own")
    flags = (*QUIET, "--tasks=none", f"--conversations={file}", "--total_batch_size=384", "--num_iterations=40", "--init_lr_frac=1")
    finished = chat.run("scripts.chat_sft", *flags, "--model_tag=own")
    assert finished.returncode == 0, finished.stderr
    assert "1 are longer than a row and left out" in finished.stdout
    answer = chat.run("scripts.chat_cli", "-p", "What is the password?", "--model_tag=own", "--temperature=0")
    assert answer.stdout.strip() == "It is swordfish."


def test_hub_tasks_are_left_out_with_a_word_and_come_from_a_copy(chat: World, tmp_path: Path) -> None:
    from tests.evals.tasks.small_copies import write_copies

    flags = (*QUIET, "--total_batch_size=384", "--num_iterations=2")
    copy_of_base(chat, "nohub")
    finished = chat.run("scripts.mid_train", *flags, "--tasks=GSM8K,Identity", "--model_tag=nohub", HF_ENDPOINT="http://127.0.0.1:9")
    assert finished.returncode == 0, finished.stderr
    assert "GSM8K is left out" in finished.stderr
    skipped = json.loads((chat.base / "runs/nohub/mid/mixture.json").read_text())["skipped"]
    assert "openai/gsm8k" in skipped["GSM8K"]
    write_copies(tmp_path)
    copy_of_base(chat, "copies")
    names = "--tasks=SmolTalk,MMLU,ARC-Easy,ARC-Challenge,GSM8K,Identity"
    finished = chat.run("scripts.mid_train", *flags, names, f"--task_dir={tmp_path}", "--model_tag=copies", nproc=2)
    assert finished.returncode == 0, finished.stderr
    parts = json.loads((chat.base / "runs/copies/mid/mixture.json").read_text())["parts"]
    assert {name: part["size"] for name, part in parts.items()} == {
        **dict.fromkeys(("SmolTalk", "MMLU", "ARC-Easy", "ARC-Challenge", "GSM8K"), 20),
        "Identity": None,
    }
    alone = chat.run("scripts.mid_train", *flags, "--tasks=GSM8K", "--model_tag=copies2", "--source=base", HF_ENDPOINT="http://127.0.0.1:9")
    wrong_request(alone, "copies2")


def test_a_stage_starts_from_a_checkpoint_or_from_a_directory_elsewhere(chat: World, tmp_path: Path) -> None:
    checkpoint = chat.base / "runs/talk/base/checkpoints/step_00000004"
    elsewhere = tmp_path / "a model"
    shutil.copytree(chat.base / "runs/talk/base/model", elsewhere)
    for tag, source, ranks in (("fromstep", checkpoint, 2), ("fromdir", elsewhere, 0)):
        sizes = ("--total_batch_size=768", "--device_batch_size=2")
        flags = (*(flag for flag in MID if "total" not in flag), *sizes, f"--source={source}", f"--model_tag={tag}")
        finished = chat.run("scripts.mid_train", *flags, nproc=ranks)
        assert finished.returncode == 0, finished.stderr
    assert losses(chat, "fromstep", "mid") == pytest.approx(losses(chat, "talk", "mid"), abs=1e-4)
    assert losses(chat, "fromdir", "mid")[12] < 0.7 * losses(chat, "fromdir", "mid")[1]  # what its base text was is not known there
    damaged = tmp_path / "checkpoints/step_00000004"
    shutil.copytree(checkpoint, damaged)
    shutil.copy(chat.base / "runs/talk/base/config.json", tmp_path)
    next(iter(sorted(damaged.glob("*.distcp")))).unlink()
    refused = chat.run("scripts.mid_train", *MID, f"--source={damaged}", "--device_batch_size=2", "--model_tag=fromdamaged")
    wrong_request(refused, "step_00000004", "cannot be read")


def test_a_chat_checkpoint_keeps_the_context_and_the_persona(chat: World, tmp_path: Path) -> None:
    persona = tmp_path / "zorro.toml"
    persona.write_text('name = "Zorro"\nmaker = "us"\n[[talk]]\nquestions = ["Who are you?", "Your name?"]\nanswer = "I am {name}."\n')
    copy_of_base(chat, "short")
    flags = (*QUIET, "--tasks=Identity", "--max_seq_len=64", "--total_batch_size=128", "--num_iterations=2", "--save_every=1")
    taught = chat.run("scripts.chat_sft", *flags, "--source=base", f"--persona={persona}", "--model_tag=short")
    assert taught.returncode == 0, taught.stderr
    run = chat.base / "runs/short"
    finished = chat.run(
        "scripts.chat_rl", *RL, "--num_iterations=1", f"--source={run}/sft/checkpoints/step_00000001", "--model_tag=short", nproc=2
    )
    assert finished.returncode == 0, finished.stderr
    assert json.loads((run / "rl/model/config.json").read_text())["max_position_embeddings"] == 192
    assert json.loads((run / "rl/persona.json").read_text())["name"] == "Zorro"
    shutil.rmtree(run / "sft/model")
    wrong_request(chat.run("scripts.chat_sft", *flags, "--source=base", "--model_tag=short"), "persona Zorro", "Nano")


def test_a_run_goes_on_only_with_the_conversations_that_it_began_with(chat: World, tmp_path: Path) -> None:
    from tests.evals.tasks.small_copies import write_copies

    own = tmp_path / "own.jsonl"
    talk = '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]}\n'
    own.write_text(talk)
    write_copies(tmp_path / "copies")
    copy_of_base(chat, "edited")
    flags = (*QUIET, "--tasks=GSM8K", f"--task_dir={tmp_path}/copies", f"--conversations={own}", "--total_batch_size=384")
    command = ("scripts.mid_train", *flags, "--num_iterations=2", "--save_every=1", "--model_tag=edited")
    finished = chat.run(*command)
    assert finished.returncode == 0, finished.stderr
    own.write_text(talk * 2)
    wrong_request(chat.run(*command), "conversations")
    own.write_text(talk)
    shutil.rmtree(chat.base / "runs/edited/mid/model")
    rows = next((tmp_path / "copies/openai/gsm8k").rglob("train*.parquet"))
    kept = rows.read_bytes()
    pq.write_table(pq.read_table(rows).slice(1), rows)
    wrong_request(chat.run(*command), "GSM8K", "20", "19")
    rows.write_bytes(kept)
    (tmp_path / "sub").mkdir()
    elsewhere = [flag.replace(str(own), f"{tmp_path}/sub/../own.jsonl") for flag in command]  # the same file under another name
    assert chat.run(*elsewhere).returncode == 0


def test_questions_that_fill_a_row_teach_nothing_and_say_so(chat: World) -> None:
    flags = [flag for flag in RL if "tasks" not in flag]
    shutil.copytree(chat.base / "runs/talk/mid", chat.base / "runs/tight/mid")
    finished = chat.run("scripts.chat_rl", *flags, "--tasks=WordProblems", "--max_seq_len=48", "--num_iterations=2", "--model_tag=tight")
    assert finished.returncode == 0, finished.stderr
    assert "48 tokens and more leave no room" in finished.stderr


def test_what_reinforcement_learning_cannot_have_is_said_before_it_begins(chat: World, tmp_path: Path) -> None:
    from tests.evals.tasks.small_copies import write_copies

    write_copies(tmp_path)
    for path in (tmp_path / "openai/gsm8k").rglob("test*"):
        path.unlink()
    shutil.copytree(chat.base / "runs/talk/mid", chat.base / "runs/notest/mid")
    refused = chat.run("scripts.chat_rl", *QUIET, "--tasks=GSM8K", f"--task_dir={tmp_path}", "--num_iterations=1", "--model_tag=notest")
    wrong_request(refused, "test.jsonl")
    assert not (chat.base / "runs/notest/rl/metrics.jsonl").exists()


def test_a_task_that_one_rank_lacks_is_no_riddle(chat: World, tmp_path: Path) -> None:
    from tests.evals.tasks.small_copies import write_copies

    write_copies(tmp_path)
    shutil.copytree(chat.base / "runs/talk/mid", chat.base / "runs/lacking/mid")
    flags = (*QUIET, "--tasks=GSM8K,Identity", f"--task_dir={tmp_path}", "--num_iterations=1", "--model_tag=lacking")
    finished = chat.run("tests.train.lacking", "scripts.chat_sft", *flags, "--total_batch_size=768", nproc=2)
    assert finished.returncode == 0, finished.stderr  # only the first rank asks for what is trained on
    rl = (*RL, "--tasks=GSM8K", f"--task_dir={tmp_path}", "--num_iterations=1", "--model_tag=lacking")
    refused = chat.run("tests.train.lacking", "scripts.chat_rl", *rl, nproc=2)
    assert refused.returncode != 0
    assert refused.stderr.startswith("error: rank 1 does not find what the first one has: 429")


def test_wrong_requests(chat: World, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"messages": [{"role": "user", "content": "hi"}, {"role": "user", "content": "again"}]}\n')
    shutil.copytree(chat.base / "runs/talk/mid", chat.base / "runs/onlymid/mid")
    mixed, shallow = tmp_path / "mixed", tempfile.mkdtemp(dir="/tmp")
    for place in (mixed, shallow):
        shutil.copytree(chat.base / "runs/talk/mid/model", place, dirs_exist_ok=True)
    config = json.loads((mixed / "config.json").read_text())
    (mixed / "config.json").write_text(json.dumps(config | {"vocab_size": 9_999}))
    (mixed / "checksums.json").unlink()  # as in a model that somebody has put together
    for args, words in (
        (("scripts.chat_sft", "--conversations", str(bad), "--num_iterations=1"), ("bad.jsonl, line 1: message 2",)),
        (("scripts.chat_sft", "--tasks=NoSuchTask"), ("NoSuchTask", "SpellingBee")),
        (("scripts.chat_sft", "--weights=GSM8K=x"), ("GSM8K=x",)),
        (("scripts.chat_sft", "--weights=HumanEval=1"), ("HumanEval", "GSM8K")),
        (("scripts.chat_sft", "--tasks=HumanEval", "--task_dir", str(tmp_path)), ("HumanEval", "evaluation")),
        (("scripts.chat_sft", "--tasks=none"), ("nothing to learn",)),
        (("scripts.chat_sft", "--task_dir=/no/such"), ("/no/such",)),
        (("scripts.chat_sft", "--tasks=Identity", "--persona=/no/such.toml"), ("/no/such.toml",)),
        (("scripts.chat_sft", "--tasks=Identity", "--source=/no/such"), ("/no/such", "base, mid")),
        (("scripts.chat_sft", "--tasks=Identity", "--source", str(mixed)), ("9,999", "tokenizer")),
        (("scripts.chat_sft", "--tasks=Identity", f"--source={shallow}", "--max_seq_len=4096"), ("4096",)),
        (("scripts.chat_sft", "--tasks=Identity", "--source=rl", "--model_tag=own"), ("rl", "own")),
        (("scripts.mid_train", "--tasks=Identity", "--max_seq_len=4096", "--model_tag=talk"), ("4096", "192")),
        (("scripts.mid_train", "--tasks=Identity", "--num_epochs=0"), ("--num_epochs",)),
        (("scripts.chat_rl", "--tasks=HumanEval"), ("HumanEval", "GSM8K")),
        (("scripts.chat_rl", "--num_samples=1"), ("--num_samples=1",)),
        (("scripts.chat_rl", "--model_tag=onlymid", "--tasks=GSM8K"), ("openai/gsm8k",)),
        (("scripts.chat_dpo",), ("--preferences",)),
        (("scripts.chat_dpo", "--preferences", str(bad)), ("bad.jsonl, line 1",)),
    ):
        wrong_request(chat.run(*args, HF_ENDPOINT="http://127.0.0.1:9"), *words)
    shutil.rmtree(shallow)
    changed = [*(flag for flag in MID if "weights" not in flag), "--weights=Identity=1"]
    wrong_request(chat.run("scripts.mid_train", *changed, "--model_tag=talk"), "mixture")
