"""Every command of the documents is run: as it stands, made small where it would take long, and in simulation where it wants GPUs.

What a test elsewhere runs already is named with that test. Nothing else is left out but vLLM, which is not installed here.
"""

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import World
from tests.data.hub_server import serve
from tests.data.test_hub_text import parquet
from tests.docs.blocks import EVERY, ROOT, Command, blocks, commands_in, text_of
from tests.serve.test_web import serving
from tests.test_run_scripts import FAKE_PYTHON, eight

QUIET = ("--no-compile", "--precision=fp32", "--eval_every=-1", "--sample_every=-1", "--save_every=-1")
SHORT = (*QUIET, "--num_iterations=2")
SMALL = ("--depth=2", "--max_seq_len=256", "--device_batch_size=2", "--total_batch_size=512")
SMALLER = {
    "dataset": ("--num_shards=1",),
    "tok_train": ("--vocab_size=700",),
    "base_train": (*SMALL, *SHORT),
    "base_loss": ("--train_tokens=1024",),
    "mid_train": SHORT,
    "chat_sft": SHORT,
    "chat_rl": (*SHORT, "--num_samples=2", "--examples_per_step=2", "--max_new_tokens=8", "--max_seq_len=128"),
    "chat_dpo": (*QUIET, "--pairs_per_step=2"),
    "chat_eval": ("-x", "2", "-m", "8"),
    "chat_cli": ("-m", "8", "--no-compile"),
    "bench_loader": ("--seconds=0.2", "--shard_tokens=100000"),
    "bench_checkpoint": ("--depth=2", "--vocab_size=700", "--saves=1"),
}
"""Flags that are added so that a command takes seconds; the last one given counts."""

ELSEWHERE = {
    r"^bash test\.sh": ".ci/run",
    r"^bash run3b\.sh --rehearse$": ".ci/run",
    r"scripts\.tune\b": "tests/tune/test_tune.py::test_everything_is_proven_and_measured",
    r"scripts\.preflight\b": "tests/preflight/test_command.py::test_yellow_warns_and_goes_on",
    r"^torchrun .* scripts\.base_train ": "tests/train/test_several_ranks.py::test_the_guides_lines_on_eight_processes",
    r"scripts\.bench_train .*--simulate": "tests/train/test_bench_train.py::test_one_rank_of_eight_says_what_it_did_and_nothing_else",
    r"scripts\.bench_train ": "tests/train/test_bench_train.py::test_beside_the_eager_loop_and_with_a_profile",
    r"scripts\.chat_eval .*GSM8K": "tests/evals/test_chat_eval.py::test_the_command_keeps_results_and_says_what_is_skipped",
    r"scripts\.chat_cli$": "tests/serve/test_terminal.py::test_a_conversation_in_a_terminal",
    r"scripts\.bench_infer ": "tests/serve/test_bench_infer.py::test_it_prints_what_machines_read",
    r"scripts\.bench_tokenize": "tests/data/test_token_shards.py::test_the_benchmark_compares_with_tiktoken",
    r"scripts\.compare_loss ": "tests/train/test_compare_loss.py::test_a_revision_is_compared_with_the_files_as_they_are",
    r"scripts\.ablate ": "tests/ablate/test_ablate.py::test_a_grid_is_done_goes_on_after_a_kill_and_ends_in_a_table",
    r"scripts\.plan --write_docs": "tests/plan/test_documents.py::test_documents_are_written_where_they_are",
    r"scripts\.mirror ": "tests/train/test_mirror.py::test_a_run_is_given_and_fetched_by_hand",
    r"scripts\.export .*--push_to_hub": "tests/serve/test_hub.py::test_a_model_goes_to_the_hub_and_is_talked_to_from_there",
    r"scripts\.export --from_nanochat": "tests/report/test_export.py::test_an_older_checkpoint_becomes_a_directory_that_transformers_opens",
    r"^sbatch |^scontrol ": "tests/test_clusters.py::test_a_job_queues_again_only_where_the_run_has_stopped",
    r"^sky ": "tests/test_clusters.py::test_skypilot_starts_the_run_script_that_is_named",
    r"^python -m pytest tests/gpu": "tests/gpu/test_training_on_gpu.py::test_float32_gives_the_losses_of_the_cpu",
}
NOT_HERE = r"^vllm |^pip install |^pip-audit "
IN_SIMULATION = r"^(\w+=\S+ )*(screen .*)?bash run[37]b\.sh\b"
ON_THE_HUB = r"^python -m scripts\.(dataset --num_shards|tok_train$)"


STAGES = next(commands_in(text, "README.md") for text in blocks("README.md", "bash") if "scripts.mid_train" in text)
"""A whole run, a stage at a time."""


def elsewhere(command: Command) -> str:
    """The test, or script, that runs it."""
    return next((test for pattern, test in ELSEWHERE.items() if re.search(pattern, command.text)), "")


def kind(command: Command) -> str:
    """How a command is run here."""
    text = command.text
    if elsewhere(command):
        return "elsewhere"
    if text in [stage.text for stage in STAGES]:
        return "stage"
    patterns = {"not here": NOT_HERE, "in simulation": IN_SIMULATION, "with the hub": ON_THE_HUB}
    patterns |= {"server": r"scripts\.chat_web", "harness": r"^lm_eval ", "set-up": r"^source |^cat report\.md$|^git "}
    return next((name for name, pattern in patterns.items() if re.search(pattern, text)), "here")


def of_kind(name: str) -> list[Command]:
    """Commands of that kind, each text once."""
    return list({command.text: command for command in EVERY if kind(command) == name}.values())


def small(text: str) -> str:
    """The command, with what makes it small."""
    for script, flags in SMALLER.items():
        text = re.sub(rf"(-m scripts\.{script}\b[^&|]*)", lambda found, flags=flags: f"{found[1]} {shlex.join(flags)} ", text)  # type: ignore[misc]
    return text.replace("DIR", "their")


def run(world: World, text: str, directory: Path, **environment: str) -> str:
    """Run it in a shell, as somebody would; returns what it says."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    own = world.environment(PATH=path, PYTHONPATH=str(ROOT), **environment)
    done = subprocess.run(["bash", "-c", text], cwd=directory, env=own, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, f"{text}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where commands are typed, with the files that they name."""
    directory = tmp_path_factory.mktemp("desk")
    conversation, preference = (line + "\n" for line in blocks("README.md", "json")[0].splitlines())
    (directory / "mine.jsonl").write_text(conversation * 8)
    (directory / "thumbs.jsonl").write_text(preference * 4)
    shutil.copyfile(ROOT / "nanochat/evals/tasks/persona.toml", directory / "me.toml")
    return directory


@pytest.fixture(scope="module")
def done(desk: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world in which every stage of the README was run, in its order."""
    world = World(tmp_path_factory.mktemp("world") / "base dir")
    world.base.mkdir()
    for command in STAGES:
        run(world, small(command.text), desk)
    return world


def test_the_stages_one_after_the_other(done: World, desk: Path) -> None:
    for stage in ("base", "mid", "sft", "rl", "dpo"):
        assert (done.base / "runs/mine" / stage / "model/config.json").is_file()
    assert "## Training: sft" in (desk / "report.md").read_text()


@pytest.mark.parametrize("command", of_kind("here"), ids=lambda one: one.text)
def test_a_command(command: Command, done: World, desk: Path) -> None:
    for tag in re.findall(r"--model_tag=(d\d+)", command.text):  # a model of that name
        if not (done.base / "runs" / tag).exists():
            shutil.copytree(done.base / "runs/mine", done.base / "runs" / tag)
    run(done, small(command.text), desk)


def test_with_the_hub(desk: Path, tmp_path: Path) -> None:
    commands = of_kind("with the hub")
    assert len(commands) == 2
    world = World(tmp_path / "base")
    world.base.mkdir()
    words = text_of("README.md") + text_of("DESIGN_3B_7B.md")
    with serve() as hub:
        for index in (0, 6542):
            hub.files[f"shard_{index:05d}.parquet"] = parquet(words, words[::-1])
        for command in commands:
            run(world, small(command.text), desk, HF_ENDPOINT=hub.endpoint, HF_HUB_OFFLINE="0", HF_HOME=str(tmp_path / "hf"))
    assert (world.base / "tokenizer/climbmix-700/tokenizer.json").is_file()


@pytest.mark.parametrize("command", of_kind("in simulation"), ids=lambda one: one.text)
def test_a_run_on_a_node_that_is_simulated(command: Command, desk: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    tools = {
        "nvidia-smi": eight("NVIDIA H100 80GB HBM3", 81_559),
        "screen": '#!/bin/bash\nwhile [ "$1" != bash ]; do shift; done\nexec "$@"\n',
        "python": FAKE_PYTHON.format(real=sys.executable, log=log),
    }
    if "--plan" in command.text:
        del tools["python"]
    for name, program in tools.items():
        (tmp_path / name).write_text(program)
        (tmp_path / name).chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if name not in ("NPROC_PER_NODE", "NNODES", "NODE_RANK", "MASTER_ADDR")}
    path = f"{tmp_path}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    own = {**kept, "PATH": path, "VIRTUAL_ENV": sys.prefix, "NANOCHAT_BASE_DIR": str(tmp_path / "base")}
    text = re.sub(r"=(mine\.jsonl|me\.toml)", rf"={desk}/\1", re.sub(r"bash (run[37]b\.sh)", rf"bash {ROOT}/\1", command.text))
    done = subprocess.run(["bash", "-c", text], cwd=tmp_path, env=own, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    if "--plan" in command.text:
        assert "validation bits per byte" in done.stdout
        return
    trained = next(line for line in log.read_text().splitlines() if "scripts.base_train" in line)
    assert f"--depth={38 if 'run3b' in text else 52} " in trained
    for variable, flag in (("PRECISION", "precision"), ("TARGET_PARAM_DATA_RATIO", "target_param_data_ratio"), ("DATA", "data")):
        for value in re.findall(rf"\b{variable}=(\S+)", command.text):
            assert f"--{flag}={value}" in trained
    for variable, flag in (("CONVERSATIONS", "conversations"), ("PERSONA", "persona")):
        for value in re.findall(rf"\b{variable}=(\S+)", text):
            assert any(f"--{flag}={value}" in line for line in log.read_text().splitlines() if "scripts.chat_sft" in line)
    assert "scripts.report" in log.read_text()


def test_the_page_and_the_program_that_asks_it(done: World) -> None:
    program = next(text for text in blocks("README.md", "python") if "openai" in text)
    servers = of_kind("server")
    assert len(servers) > 1
    for command in servers:
        flags = [flag for flag in command.flags if not flag.startswith("--num_gpus")]  # this machine has none
        with serving(done, "--model_tag=mine", "--no-compile", "-m", "8", *flags) as web:
            asked = program.replace("http://127.0.0.1:8000", web.url).replace('"none"', '"SECRET"')
            assert subprocess.run([sys.executable, "-c", asked], capture_output=True, timeout=60).returncode == 0


def test_transformers_opens_a_model_as_it_is_shown(done: World, desk: Path) -> None:
    program = next(text for text in blocks("README.md", "python") if "transformers" in text)
    asked = program.replace("my-model", str(done.base / "runs/mine/sft/model"))
    finished = subprocess.run([sys.executable, "-c", asked], cwd=desk, capture_output=True, text=True, timeout=120)
    assert "How many r are in strawberry?" in finished.stdout, finished.stderr


def test_the_harness_takes_a_model(done: World, desk: Path) -> None:
    """With a task that is on this machine in the place of those of the hub."""
    (command,) = of_kind("harness")
    tasks = desk / "tasks"
    tasks.mkdir()
    (tasks / "questions.jsonl").write_text('{"question": "Is it so?", "choices": ["yes", "no"], "answer": 0}\n' * 2)
    task = {
        "task": "local",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tasks / "questions.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
    }
    (tasks / "local.yaml").write_text(json.dumps(task))
    text = command.text.replace("my-model", shlex.quote(str(done.base / "runs/mine/sft/model")))
    text = re.sub(r"--tasks \S+", "--tasks local", text) + f" --include_path {tasks} --device cpu"
    assert "local" in run(done, text, desk, HF_DATASETS_CACHE=str(desk / "cache"))


def test_what_is_run_elsewhere_is_run_there() -> None:
    named = {elsewhere(command) for command in EVERY} - {"", ".ci/run"}
    for test in sorted(named):
        file, _, function = test.partition("::")
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        assert function in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)], test
    ci = (ROOT / ".ci/run").read_text()
    assert "bash test.sh\n" in ci
    assert "bash run3b.sh --rehearse\n" in ci


def test_what_is_not_run_at_all_is_said() -> None:
    assert [command.text.split()[0] for command in of_kind("not here")] == ["vllm", "pip", "pip-audit"]
    assert "vLLM has not been run" in text_of("README.md")
