"""The run scripts before they begin: what they refuse, at once and in one sentence."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


NO_GPU = "#!/bin/sh\necho 'No devices were found'\nexit 6\n"


def eight(name: str, mib: int) -> str:
    """A driver's tool on a node of eight GPUs of a kind."""
    listed = "\n".join(f"GPU {i}: {name} (UUID: GPU-{i})" for i in range(8))
    asked = "\n".join([f"{name}, {mib}"] * 8)
    return f"#!/bin/sh\ncase $1 in -L) echo '{listed}' ;; *) echo '{asked}' ;; esac\n"


def run_script(tmp_path: Path, script: str, *args: str, nvidia_smi: str = NO_GPU, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a script on a machine with the GPUs that its driver tells of, with the tests' own Python as the active environment."""
    (tmp_path / "nvidia-smi").write_text(nvidia_smi)
    (tmp_path / "nvidia-smi").chmod(0o755)
    kept = {k: v for k, v in os.environ.items() if k not in ("NPROC_PER_NODE", "NNODES", "NODE_RANK", "MASTER_ADDR", "NUM_SHARDS")}
    path = f"{tmp_path}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**kept, "PATH": path, "VIRTUAL_ENV": sys.prefix, "NANOCHAT_BASE_DIR": str(tmp_path / "base"), **more}
    return subprocess.run(["bash", str(ROOT / script), *args], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("script", ["run3b.sh", "run7b.sh"])
def test_without_a_gpu_one_sentence_names_the_rehearsal(script: str, tmp_path: Path) -> None:
    finished = run_script(tmp_path, script)
    assert finished.returncode == 2
    assert finished.stdout == ""
    assert finished.stderr.count("\n") == 1
    assert f"bash {script} --rehearse" in finished.stderr


def test_an_unknown_flag_is_refused(tmp_path: Path) -> None:
    finished = run_script(tmp_path, "run3b.sh", "--reherse")
    assert finished.returncode == 2
    assert "--reherse" in finished.stderr
    assert finished.stdout == ""


def test_several_nodes_need_their_rank_and_the_first_ones_address(tmp_path: Path) -> None:
    several = {"NPROC_PER_NODE": "1", "NNODES": "2"}
    assert "NODE_RANK" in run_script(tmp_path, "run3b.sh", **several).stderr
    finished = run_script(tmp_path, "run3b.sh", NODE_RANK="0", **several)
    assert finished.returncode != 0
    assert "MASTER_ADDR" in finished.stderr
    assert not (tmp_path / "base").exists()


@pytest.mark.parametrize(("name", "value"), [("NNODES", "abc"), ("NPROC_PER_NODE", "-1"), ("NPROC_PER_NODE", "7"), ("NUM_SHARDS", "many")])
def test_numbers_that_cannot_be_are_refused_before_anything_is_fetched(name: str, value: str, tmp_path: Path) -> None:
    finished = run_script(tmp_path, "run3b.sh", **{"NPROC_PER_NODE": "1", name: value})
    assert finished.returncode == 2
    assert value in finished.stderr
    assert not (tmp_path / "base").exists()


def test_both_scripts_hold_the_guides_sizes() -> None:
    for script, sizes in (("run3b.sh", (38, 48, 786_432)), ("run7b.sh", (52, 24, 393_216))):
        lines = (ROOT / script).read_text().splitlines()
        names = ("DEPTH", "DEVICE_BATCH_SIZE", "TOTAL_BATCH_SIZE")
        assert [f"{name}={size}" for name, size in zip(names, sizes, strict=True)] == [line for line in lines if line.startswith(names)]


def test_the_plan_is_for_the_node_that_is_named(tmp_path: Path) -> None:
    finished = run_script(tmp_path, "run3b.sh", "--plan", "--gpus", "8xA100-80GB", "--json")
    assert finished.returncode == 0, finished.stderr
    plan = json.loads(finished.stdout)
    assert (plan["depth"], plan["device_batch_size"], plan["total_batch_size"], plan["gpu"]) == (38, 48, 786_432, "A100-80GB")
    assert plan["estimated"]
    assert not (tmp_path / "base").exists()


def test_the_plan_is_for_this_machine_where_none_is_named(tmp_path: Path) -> None:
    finished = run_script(tmp_path, "run7b.sh", "--plan", "--json", nvidia_smi=eight("NVIDIA H200", 143_771))
    plan = json.loads(finished.stdout)
    assert (plan["depth"], plan["gpu"], plan["world_size"]) == (52, "H200", 8)
    without = run_script(tmp_path, "run7b.sh", "--plan")
    assert without.returncode == 0
    assert "planned for 8xH100-80GB" in without.stdout


def test_the_plans_own_flags_are_checked_by_the_planner(tmp_path: Path) -> None:
    finished = run_script(tmp_path, "run3b.sh", "--plan", "--gpus", "8xV100")
    assert finished.returncode == 2
    assert "H100-80GB" in finished.stderr.splitlines()[-1]


def with_free_disk(tmp_path: Path, gb: int) -> dict[str, str]:
    """An environment in which Python finds so much room on every disk."""
    (tmp_path / "sitecustomize.py").write_text(
        "import collections, shutil\n"
        f"shutil.disk_usage = lambda path: collections.namedtuple('usage', 'total used free')(10**15, 0, {gb} * 10**9)\n"
    )
    return {"PYTHONPATH": str(tmp_path)}


def test_a_disk_that_is_too_small_is_refused_before_anything_is_fetched(tmp_path: Path) -> None:
    node = eight("NVIDIA H100 80GB HBM3", 81_559)
    finished = run_script(tmp_path, "run3b.sh", nvidia_smi=node, SKIP_PREFLIGHT="1", **with_free_disk(tmp_path, 100))
    assert finished.returncode == 2
    assert finished.stderr.count("\n") == 1
    assert "100.0 GB free, and this run needs 180" in finished.stderr
    assert not list((tmp_path / "base").rglob("*"))
    assert "== " not in finished.stdout


def test_a_model_that_does_not_fit_is_refused_before_anything_is_fetched(tmp_path: Path) -> None:
    small = eight("NVIDIA GeForce RTX 3060", 12_288)
    finished = run_script(tmp_path, "run7b.sh", nvidia_smi=small, SKIP_PREFLIGHT="1", **with_free_disk(tmp_path, 10_000))
    assert finished.returncode == 2
    assert finished.stderr.count("\n") == 1
    assert "depth 52 on 8 × NVIDIA GeForce RTX 3060 needs at least" in finished.stderr
    assert "--depth=" in finished.stderr
    assert "== " not in finished.stdout


@pytest.mark.parametrize(("own", "asked_for"), [({}, "478"), ({"NUM_SHARDS": "20"}, "20")])
def test_the_planner_says_how_many_shards_to_fetch(own: dict[str, str], asked_for: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("nanochat", "scripts", "setup.sh", "stages.sh", "pyproject.toml", "constraints.txt"):
        (copy / name).symlink_to(ROOT / name)
    (copy / "run3b.sh").write_text((ROOT / "run3b.sh").read_text())
    # It ends where the first stage would begin.
    stages = "is_there() {"
    whole = (ROOT / "pipeline.sh").read_text()
    assert stages in whole
    (copy / "pipeline.sh").write_text(whole.replace(stages, 'echo "shards: $NUM_SHARDS"; exit 0\n' + stages))
    node = eight("NVIDIA H100 80GB HBM3", 81_559)
    finished = run_script(tmp_path, str(copy / "run3b.sh"), nvidia_smi=node, SKIP_PREFLIGHT="1", **own, **with_free_disk(tmp_path, 10_000))
    assert f"shards: {asked_for}\n" in finished.stdout, finished.stderr


FAKE_PYTHON = """#!/bin/sh
case "$*" in
  "- "*) exec {real} "$@" ;;
  *scripts.plan*) echo 9 ;;
  *) echo "$*" >> {log} ;;
esac
case "$*" in *base_eval*) exit 1 ;; esac
"""


@pytest.mark.parametrize(("script", "tag", "batch"), [("run3b.sh", "d38", 786_432), ("run7b.sh", "d52", 393_216)])
def test_a_real_run_goes_through_every_stage_in_order(script: str, tag: str, batch: int, tmp_path: Path) -> None:
    log = tmp_path / "log"
    (tmp_path / "python").write_text(FAKE_PYTHON.format(real=sys.executable, log=log))
    (tmp_path / "python").chmod(0o755)
    finished = run_script(tmp_path, script, nvidia_smi=eight("NVIDIA H100 80GB HBM3", 81_559))
    assert finished.returncode == 0, finished.stderr
    commands = [re.search(r".*-m scripts\.(\w+) ?(?:-- )?(.*)", line) for line in log.read_text().splitlines()]
    done = [(found[1], found[2]) for found in commands if found]
    order = "preflight dataset tune tok_train tok_eval tok_encode base_train base_loss base_eval chat_eval"
    order += " mid_train chat_eval chat_sft chat_eval chat_rl chat_eval report"
    foreground = [name for at, (name, _) in enumerate(done) if name != "dataset" or at == 1]
    assert " ".join(foreground) == order
    assert f"--total_batch_size={batch}" in dict(done)["base_train"]
    assert f"--total_batch_size={batch} --nodes=1 --nproc_per_node=8 --data=climbmix" in dict(done)["preflight"]
    for name in ("mid_train", "chat_sft", "chat_rl", "report"):
        assert dict(done)[name] == f"--model_tag={tag}"
    assert [flags.split()[1] for name, flags in done if name == "chat_eval"] == ["base", "mid", "sft", "rl"]
    assert "warning: the evaluation failed" in finished.stderr
    assert all("--nproc_per_node=8" in line for line in log.read_text().splitlines() if "scripts.base" in line or "scripts.chat" in line)


@pytest.mark.parametrize(("own", "fetched"), [({}, ["8"]), ({"NUM_SHARDS": "20"}, ["8", "20"])])
def test_after_base_training_a_run_goes_on_and_wants_no_more_text(own: dict[str, str], fetched: list[str], tmp_path: Path) -> None:
    (tmp_path / "base/runs/d38/base/model").mkdir(parents=True)
    log = tmp_path / "log"
    (tmp_path / "python").write_text(FAKE_PYTHON.format(real=sys.executable, log=log))
    (tmp_path / "python").chmod(0o755)
    finished = run_script(tmp_path, "run3b.sh", nvidia_smi=eight("NVIDIA H100 80GB HBM3", 81_559), **own)
    assert finished.returncode == 0, finished.stderr
    lines = log.read_text().splitlines()
    assert sorted((line.split()[-1] for line in lines if "scripts.dataset" in line), key=int) == fetched
    assert "scripts.chat_rl" in lines[-3]
    assert "scripts.report" in lines[-1]


def test_a_text_of_your_own_is_taken_whole_under_the_name_that_was_given(tmp_path: Path) -> None:
    log = tmp_path / "log"
    (tmp_path / "python").write_text(FAKE_PYTHON.format(real=sys.executable, log=log))
    (tmp_path / "python").chmod(0o755)
    finished = run_script(tmp_path, "run3b.sh", nvidia_smi=eight("NVIDIA H100 80GB HBM3", 81_559), DATA="path:/my text")
    assert finished.returncode == 0, finished.stderr
    lines = log.read_text().splitlines()
    assert [line for line in lines if "scripts.dataset" in line] == ["-m scripts.dataset --data path:/my text --num_shards -1"]
    for script in ("tok_eval", "tok_encode", "base_train"):
        (line,) = (line for line in lines if f"scripts.{script} " in line)
        assert "path:/my text-65536" in line


STOPPING_PYTHON = """#!/bin/sh
case "$*" in
  "- "*) exec {real} "$@" ;;
  *scripts.plan*) echo 9 ;;
  *) echo "$*" >> {log} ;;
esac
case "$*" in *scripts.preflight*) exit {preflight} ;; *scripts.dataset*) exit 3 ;; esac
"""


@pytest.mark.parametrize(
    ("flags", "preflight", "status", "fetches"),
    [((), 2, 2, False), ((), 1, 3, True), ((), 0, 3, True), (("--rehearse",), 2, 3, True)],
)
def test_what_is_red_stops_a_run_before_anything_is_fetched(
    flags: tuple[str, ...], preflight: int, status: int, fetches: bool, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    (tmp_path / "python").write_text(STOPPING_PYTHON.format(real=sys.executable, log=log, preflight=preflight))
    (tmp_path / "python").chmod(0o755)
    node = eight("NVIDIA H100 80GB HBM3", 81_559)
    finished = run_script(tmp_path, "run3b.sh", *flags, nvidia_smi=node)
    assert finished.returncode == status, finished.stderr
    assert "scripts.preflight" in log.read_text().splitlines()[0]
    assert ("scripts.dataset" in log.read_text()) == fetches
    assert ("SKIP_PREFLIGHT=1 bash run3b.sh" in finished.stdout) == (status == 2)
    assert (f"warning: the preflight ended with {preflight}" in finished.stderr) == (fetches and preflight != 0)
    log.unlink()
    run_script(tmp_path, "run3b.sh", *flags, nvidia_smi=node, SKIP_PREFLIGHT="1")
    assert "scripts.preflight" not in log.read_text()


def test_nodes_look_themselves_over_together(tmp_path: Path) -> None:
    log = tmp_path / "log"
    (tmp_path / "python").write_text(STOPPING_PYTHON.format(real=sys.executable, log=log, preflight=0))
    (tmp_path / "python").chmod(0o755)
    several = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1"}
    run_script(tmp_path, "run3b.sh", nvidia_smi=eight("NVIDIA H100 80GB HBM3", 81_559), **several)
    first = log.read_text().splitlines()[0]
    assert first.startswith("-m scripts.launch --nnodes=2 --node_rank=1 --master_addr=10.0.0.1")
    assert "-m scripts.preflight -- --depth=38" in first
    assert "--nodes=2 --nproc_per_node=8" in first


@pytest.mark.parametrize(
    ("several", "ranks_a_node"),
    [
        ({"NPROC_PER_NODE": "8"}, 4),
        ({"NPROC_PER_NODE": "8", "NNODES": "2", "NODE_RANK": "0", "MASTER_ADDR": "10.0.0.1"}, 2),
        ({"NPROC_PER_NODE": "1", "NNODES": "3", "NODE_RANK": "0", "MASTER_ADDR": "10.0.0.1"}, 1),
    ],
)
def test_a_rehearsal_takes_no_more_ranks_than_its_batches_split_over(several: dict[str, str], ranks_a_node: int, tmp_path: Path) -> None:
    log = tmp_path / "log"
    (tmp_path / "python").write_text(STOPPING_PYTHON.format(real=sys.executable, log=log, preflight=0))
    (tmp_path / "python").chmod(0o755)
    run_script(tmp_path, "run3b.sh", "--rehearse", **several)
    assert f"--nproc_per_node={ranks_a_node} " in log.read_text().splitlines()[0] + " "
