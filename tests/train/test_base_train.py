"""Base training as a person runs it: to the end, cut off, on two processes, with wrong requests."""

import json
import math
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from nanochat.plan import sizes
from nanochat.train.run_directory import StageDirectory
from tests.conftest import ROOT, TINY, VOCAB_SIZE, World, wrong_request
from tests.train.wandb_file import read_run

FLAGS = (*TINY, "--num_iterations=24", "--save_every=6")


@pytest.fixture(scope="module")
def unbroken(world: World) -> dict[int, float]:
    """The losses of a run that nothing disturbs."""
    finished = world.run("scripts.base_train", *FLAGS, "--model_tag=unbroken")
    assert finished.returncode == 0, finished.stderr
    return world.losses("unbroken")


def test_the_loss_falls_and_every_step_is_recorded(world: World, unbroken: dict[int, float]) -> None:
    assert sorted(unbroken) == list(range(1, 25))
    assert unbroken[1] == pytest.approx(math.log(700), abs=0.02)  # the head starts at zero: every token is as likely
    assert unbroken[24] < 0.8 * unbroken[1]
    row = json.loads((world.base / "runs/unbroken/base/metrics.jsonl").read_text().splitlines()[9])
    assert {"step", "loss", "lr_scale", "grad_norm", "tok_per_sec", "mfu", "mem_gib", "tokens", "elapsed_s"} <= set(row)
    assert (row["step"], row["tokens"], row["lr_scale"]) == (10, 5120, 1.0)
    kept = sorted(p.name for p in (world.base / "runs/unbroken/base/checkpoints").glob("step_*"))
    assert kept == ["step_00000018", "step_00000024"]


def test_an_embedding_that_begins_with_the_text_is_ahead_of_a_random_one(world: World, unbroken: dict[int, float]) -> None:
    finished = world.run("scripts.base_train", *FLAGS, "--embedding_init=random", "--model_tag=random")
    assert finished.returncode == 0, finished.stderr
    assert "neighbours" not in finished.stdout
    assert unbroken[24] < world.losses("random")[24] - 0.05


def test_heads_that_begin_by_looking_back_are_ahead_of_random_ones(world: World, unbroken: dict[int, float]) -> None:
    finished = world.run("scripts.base_train", *FLAGS, "--attention_init=random", "--model_tag=random-heads")
    assert finished.returncode == 0, finished.stderr
    assert unbroken[24] < world.losses("random-heads")[24] - 0.01


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_cut_off_and_started_again_the_losses_are_bit_for_bit_the_same(world: World, unbroken: dict[int, float], number: int) -> None:
    tag = f"cut-{number}"
    metrics = world.base / "runs" / tag / "base/metrics.jsonl"
    process = subprocess.Popen(
        world.arguments("scripts.base_train", *FLAGS, f"--model_tag={tag}"),
        cwd=ROOT,
        env=world.environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not (metrics.exists() and metrics.read_text().count("\n") >= 9) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 75), output
    assert not (world.base / "runs" / tag / "base/model").exists()
    if number == signal.SIGTERM:
        assert "the same command goes on" in output
    again = world.run("scripts.base_train", *FLAGS, f"--model_tag={tag}")
    assert again.returncode == 0, again.stderr
    assert "going on after step" in again.stdout
    assert world.losses(tag) == unbroken
    assert len(metrics.read_text().splitlines()) == 24
    states = [world.base / "runs" / t / "base/model/model.safetensors" for t in (tag, "unbroken")]
    assert states[0].read_bytes() == states[1].read_bytes()


def test_a_finished_run_is_left_alone(world: World, unbroken: dict[int, float]) -> None:
    weights = world.base / "runs/unbroken/base/model/model.safetensors"
    before = weights.stat().st_mtime_ns
    again = world.run("scripts.base_train", *FLAGS, "--model_tag=unbroken")
    assert again.returncode == 0
    assert "already done" in again.stdout
    assert weights.stat().st_mtime_ns == before
    kept = json.loads((world.base / "runs/unbroken/base/config.json").read_text())["settings"]
    longer = world.run("scripts.base_train", *FLAGS, "--num_iterations=99", "--model_tag=unbroken")
    wrong_request(longer, "was finished with --num_iterations=24", "--num_iterations=99 is asked for now", "another --model_tag")
    assert json.loads((world.base / "runs/unbroken/base/config.json").read_text())["settings"] == kept


def test_text_and_tokenizer_may_be_named_by_the_directory_of_the_text(world: World, world_of_text: World) -> None:
    path = f"path:{world_of_text.base}/my text"
    named = (f"--data={path}", f"--tokenizer={path}-{VOCAB_SIZE}")
    finished = world.run("scripts.base_train", *TINY, *named, "--num_iterations=1", "--save_every=-1", "--model_tag=named")
    assert finished.returncode == 0, finished.stderr
    assert "warning" not in finished.stderr
    wrong_request(world.run("scripts.base_train", *TINY, named[0], f"--tokenizer={path}-701"), "no such tokenizer")


def test_of_what_says_how_long_only_what_counts_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    stage = StageDirectory("short", "base")
    stage.path.mkdir(parents=True)

    def other(kept: dict[str, float], asked: dict[str, float]) -> str:
        usual = {"num_iterations": -1, "target_hours": -1, "target_param_data_ratio": 8}
        (stage.path / "config.json").write_text(json.dumps({"identity": {}, "settings": usual | kept}))
        return stage.other_length(usual | asked)

    assert "--num_iterations=100, and --num_iterations=-1" in other({"num_iterations": 100}, {})
    assert other({"num_iterations": 100}, {"num_iterations": 100, "target_hours": 3}) == ""
    assert "--target_hours=-1, and --target_hours=3" in other({}, {"target_hours": 3})
    assert other({}, {}) == ""


@pytest.mark.parametrize("nproc", [2, 3, pytest.param(4, marks=pytest.mark.slow)])
def test_several_processes_give_the_losses_of_one(world: World, nproc: int) -> None:
    flags = [flag for flag in TINY if not flag.startswith("--total")] + ["--total_batch_size=768", "--num_iterations=20", "--save_every=-1"]
    for tag, processes in (("one", 0), (f"several-{nproc}", nproc)):
        if tag == "one" and (world.base / "runs/one/base/model").exists():
            continue
        finished = world.run("scripts.base_train", *flags, f"--model_tag={tag}", nproc=processes)
        assert finished.returncode == 0, finished.stderr
    one, several = world.losses("one"), world.losses(f"several-{nproc}")
    assert several == pytest.approx(one, abs=1e-4)
    assert several != {}


def test_another_batch_size_on_resuming_takes_up_the_data_where_it_was(world: World) -> None:
    stop = ["--num_iterations=6", "--model_tag=growing"]
    assert world.run("scripts.base_train", *TINY, *stop).returncode == 0
    shutil.rmtree(world.base / "runs/growing/base/model")
    flags = [flag for flag in TINY if not flag.startswith("--total")] + [
        "--total_batch_size=1024",
        "--num_iterations=8",
        "--model_tag=growing",
    ]
    finished = world.run("scripts.base_train", *flags)
    assert finished.returncode == 0, finished.stderr
    rows = [json.loads(line) for line in (world.base / "runs/growing/base/metrics.jsonl").read_text().splitlines()]
    assert [row["tokens"] for row in rows] == [512 * step for step in range(1, 7)] + [512 * 6 + 1024, 512 * 6 + 2048]


def test_bf16_learns_like_fp32_and_its_model_is_bf16(world: World, unbroken: dict[int, float]) -> None:
    flags = [flag for flag in FLAGS if not flag.startswith(("--precision", "--sample"))]
    finished = world.run("scripts.base_train", *flags, "--precision=bf16", "--sample_every=24", "--model_tag=bf16")
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("sample: ") == 4
    assert world.losses("bf16") == pytest.approx(unbroken, abs=0.05)
    assert world.losses("bf16") != unbroken
    assert json.loads((world.base / "runs/bf16/base/model/config.json").read_text())["dtype"] == "bfloat16"
    assert (world.base / "runs/bf16/base/model/model.safetensors").stat().st_size < 2.1 * sizes.parameters(2, VOCAB_SIZE)


def test_transformers_gives_the_logits_of_the_trained_model(trained: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from nanochat.model.directory import load_model

    ours, tokenizer = load_model(trained, torch.device("cpu"))
    theirs = AutoModelForCausalLM.from_pretrained(trained)
    text = "The while statement is used for repeated execution as long as an expression is true:\n\n   été 北京 12345"
    ids = tokenizer.encode(text)
    assert AutoTokenizer.from_pretrained(trained)(text, add_special_tokens=False)["input_ids"] == ids
    batch = torch.tensor([[tokenizer.bos_id, *ids]])
    with torch.no_grad():
        torch.testing.assert_close(ours(batch), theirs(batch).logits, atol=1e-4, rtol=0)


def test_bits_per_byte_are_what_the_losses_say(world: World, trained: Path) -> None:
    from nanochat.data.samples import Manifest, Samples
    from nanochat.data.token_shards import read_index
    from nanochat.model.directory import load_model

    model, tokenizer = load_model(trained, torch.device("cpu"))
    index = read_index(next((world.base / "tokens").iterdir()))
    samples = Samples(Manifest.of(index, "val", 64, 0), index.directory, shuffle=False)
    nats = n_bytes = 0.0
    for row in samples[np.arange(2048 // 64)]:
        with torch.no_grad():
            logp = model(torch.tensor(row[None, :-1])).double().log_softmax(-1)[0]
        for place, target in enumerate(row[1:].tolist()):
            if target < tokenizer.bos_id:
                nats -= float(logp[place, target])
                n_bytes += len(tokenizer.decode_bytes([target]))
    rows = [json.loads(line) for line in (trained.parent / "metrics.jsonl").read_text().splitlines()]
    recorded = {row["step"]: row["val_bpb"] for row in rows if "val_bpb" in row}
    assert sorted(recorded) == [15, 30]
    assert recorded[30] == pytest.approx(nats / math.log(2) / n_bytes, rel=1e-5)

    finished = world.run("scripts.base_loss", "--model_tag=trained", "--eval_tokens=2048", "--precision=fp32", nproc=2)
    assert finished.returncode == 0, finished.stderr
    assert f"val: {recorded[30]:.4f} bits per byte" in finished.stdout
    assert "xz -9e" in finished.stdout


def test_wandb_offline_holds_the_loss(world: World, tmp_path: Path) -> None:
    environment = {"WANDB_MODE": "offline", "WANDB_RUN": "my_experiment", "HOME": str(tmp_path)}
    finished = world.run("scripts.base_train", *TINY, "--num_iterations=3", "--model_tag=logged", **environment)
    assert finished.returncode == 0, finished.stderr
    name, rows = read_run(next((world.base / "runs/logged/base/wandb").glob("offline-run-*")))
    assert name == "my_experiment"
    assert [row["loss"] for row in rows] == pytest.approx(list(world.losses("logged").values()))


def test_without_a_run_name_wandb_is_not_imported(world: World) -> None:
    (world.base / "no wandb").mkdir(exist_ok=True)
    (world.base / "no wandb/wandb.py").write_text("raise SystemExit('wandb was imported')")
    path = f"{world.base / 'no wandb'}{os.pathsep}{ROOT}"
    for tag, run in (("quiet", ""), ("quiet-dummy", "dummy")):
        finished = world.run("scripts.base_train", *TINY, "--num_iterations=1", f"--model_tag={tag}", PYTHONPATH=path, WANDB_RUN=run)
        assert finished.returncode == 0, finished.stdout + finished.stderr


def test_no_control_characters_where_output_is_no_terminal(world: World) -> None:
    finished = world.run("scripts.base_train", *TINY, "--num_iterations=2", "--model_tag=plain")
    assert finished.returncode == 0
    assert not set("\r\x1b") & set(finished.stdout + finished.stderr)
    assert "step 1/2 | loss" in finished.stdout


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--depht=4"], ["--depht=4"]),
        (["--depth=0"], ["depth"]),
        (["--depth=-1"], ["depth"]),
        (["--depth=13"], ["12 and 14"]),
        (["--depth=abc"], ["abc"]),
        (["--total_batch_size=1000"], ["960 and 1024"]),
        (["--max_seq_len=500000", "--total_batch_size=500000"], ["or less"]),
        (["--num_iterations=0"], ["--num_iterations=0"]),
        (["--eval_every=0"], ["--eval_every=0"]),
        (["--matrix_lr=nan"], ["--matrix_lr"]),
        (["--precision=fp16"], ["fp16"]),
        (["--precision=fp8"], ["--precision=fp8", "no GPU", "bf16"]),
        (["--target_param_data_ratio=-1"], ["--num_iterations"]),
        (["--tokenizer=other-5"], ["other-5", "scripts.tok_train"]),
        (["--data=climbmix"], ["climbmix", "scripts.dataset"]),
        (["--data=nonsense"], ["nonsense"]),
    ],
)
def test_wrong_requests_are_one_clear_line(world: World, flags: list[str], words: list[str]) -> None:
    given = {flag.split("=")[0] for flag in flags}
    kept = [flag for flag in TINY if flag.split("=")[0] not in given]
    wrong_request(world.run("scripts.base_train", *kept, *flags, "--model_tag=wrong"), *words)


def test_another_depth_under_the_same_tag_is_refused_and_nothing_lost(world: World, unbroken: dict[int, float]) -> None:
    flags = [flag for flag in FLAGS if not flag.startswith("--depth")]
    wrong_request(world.run("scripts.base_train", *flags, "--depth=4", "--model_tag=unbroken"), "depth 2", "asks for 4", "--model_tag")
    assert world.losses("unbroken") == unbroken


def test_a_diverged_run_stops_and_publishes_nothing(world: World) -> None:
    finished = world.run(
        "scripts.base_train", *TINY, "--num_iterations=8", "--matrix_lr=1e30", "--embedding_lr=1e38", "--save_every=1", "--model_tag=nan"
    )
    wrong_request(finished, "nan", "learning rates")
    assert not (world.base / "runs/nan/base/model").exists()
    assert all(math.isfinite(loss) for loss in world.losses("nan").values())


def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(world: World, unbroken: dict[int, float]) -> None:
    directory = world.base / "runs/damaged/base"
    shutil.copytree(world.base / "runs/unbroken/base", directory)
    shutil.rmtree(directory / "model")
    newest = directory / "checkpoints/step_00000024/__0_0.distcp"
    newest.write_bytes(newest.read_bytes()[:-100])
    (directory / "checkpoints/.step_00000030.1.tmp").mkdir()
    finished = world.run("scripts.base_train", *FLAGS, "--model_tag=damaged")
    assert finished.returncode == 0, finished.stderr
    assert "step_00000024 is damaged" in finished.stderr
    assert "going on after step 18" in finished.stdout
    assert world.losses("damaged") == unbroken
    assert [path.name for path in (directory / "checkpoints").iterdir() if path.name.startswith(".")] == []
    model = (directory / "model/model.safetensors").read_bytes()
    assert model == (world.base / "runs/unbroken/base/model/model.safetensors").read_bytes()


def test_a_run_beyond_the_steps_asked_for_is_not_called_finished(world: World, unbroken: dict[int, float]) -> None:
    directory = world.base / "runs/beyond/base"
    shutil.copytree(world.base / "runs/unbroken/base", directory)
    shutil.rmtree(directory / "model")
    flags = [flag for flag in FLAGS if not flag.startswith("--num_iterations")]
    wrong_request(world.run("scripts.base_train", *flags, "--num_iterations=5", "--model_tag=beyond"), "step 24", "5 asked for")
    assert not (directory / "model").exists()


def test_two_runs_on_the_same_tag_at_once(world: World) -> None:
    flags = [*TINY, "--num_iterations=100000", "--save_every=-1", "--model_tag=busy"]
    first = subprocess.Popen(world.arguments("scripts.base_train", *flags), cwd=ROOT, env=world.environment(), stdout=subprocess.PIPE)
    try:
        metrics = world.base / "runs/busy/base/metrics.jsonl"
        deadline = time.monotonic() + 60
        while not metrics.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        wrong_request(world.run("scripts.base_train", *flags), "another process", "--model_tag")
        assert first.poll() is None
    finally:
        first.kill()
        first.communicate()


def test_a_damaged_token_shard_is_named(world: World, tmp_path: Path) -> None:
    copy = World(tmp_path / "copy")
    shutil.copytree(world.base, copy.base, ignore=shutil.ignore_patterns("runs"))
    shard = next((copy.base / "tokens").glob("*/shard_00000.bin"))
    data = bytearray(shard.read_bytes())
    data[1001] ^= 1
    shard.write_bytes(data)
    wrong_request(copy.run("scripts.base_train", *TINY, "--num_iterations=1"), "shard_00000.bin", "scripts.tok_encode")


def test_a_base_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    wrong_request(World(tmp_path / "file/base").run("scripts.base_train", *TINY, "--num_iterations=1"), "NANOCHAT_BASE_DIR")


def test_training_goes_on_where_a_full_disk_takes_no_checkpoint_and_ends_well_after_room_is_made(world: World, tmp_path: Path) -> None:
    """On a file system of 12 MB, which holds two checkpoints of 4.6 MB but not the third that is written beside them."""
    small = World(tmp_path / "small")
    small.base.mkdir()
    private = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]
    probe = [*private, "sh", "-c", 'mount -t tmpfs none "$0"', str(small.base)]
    if shutil.which("unshare") is None or subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("needs a file system of its own, which this user may not mount here")
    flags = [*TINY, "--num_iterations=40", "--save_every=5", "--model_tag=full"]
    script = """
        mount -t tmpfs -o size=12m none "$0" && cp -r "$1"/data "$1"/tokenizer "$1"/tokens "$0" && shift
        "$@"; first=$?
        ls "$0/runs/full/base/checkpoints"; mount -o remount,size=40m "$0"
        "$@" || exit 99
        cp "$0/runs/full/base/metrics.jsonl" "$0".jsonl; ls "$0/runs/full/base/model"
        exit $first
    """
    command = [*private, "sh", "-c", script, str(small.base), str(world.base), *small.arguments("scripts.base_train", *flags)]
    finished = subprocess.run(command, cwd=ROOT, env=small.environment(), capture_output=True, text=True)
    assert finished.returncode == 2, finished.stdout + finished.stderr  # the first time, at the model at the latest
    warnings = [line for line in finished.stderr.splitlines() if line.startswith("warning: step ")]
    assert warnings
    assert all("No space left on device" in line and "training goes on, the last good one stays" in line for line in warnings)
    assert next(line for line in finished.stderr.splitlines() if line.startswith("error: ")).startswith("error: the disk is full at")
    assert "Traceback" not in finished.stderr
    assert "latest\nstep_00000005\nstep_00000010\n" in finished.stdout
    assert "going on after step 10" in finished.stdout
    assert "model.safetensors" in finished.stdout
    rows = [json.loads(line) for line in small.base.with_suffix(".jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 41))
