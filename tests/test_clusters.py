"""The files for clusters and clouds: what reaches the run script of each node, and when a job queues again."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]

RUN_SCRIPT = """
trap 'echo "$NODE_RANK heard USR1" >> heard; exit 75' USR1
echo "$NODE_RANK: $NNODES nodes, first $MASTER_ADDR:$MASTER_PORT, ${NPROC_PER_NODE:-?} a node, ${0##*/} $*" >> started
if [ -e stays ]; then while :; do sleep 0.05; done; fi
exit "$(cat "status$NODE_RANK" 2>/dev/null || echo 0)"
"""

# A task a node; a signal goes to all of them, and the highest status is srun's.
SRUN = """#!/usr/bin/env bash
echo "srun $*" >> called
while [[ $1 = --* ]]; do shift; done
trap 'kill -USR1 "${tasks[@]}"' USR1
for ((node = 0; node < SLURM_JOB_NUM_NODES; node++)); do SLURM_NODEID=$node "$@" & tasks+=($!); done
highest=0
for task in "${tasks[@]}"; do
  while kill -0 "$task" 2>/dev/null; do wait "$task"; done
  wait "$task"
  status=$?
  [ "$status" -le "$highest" ] || highest=$status
done
exit "$highest"
"""

SCONTROL = """#!/usr/bin/env bash
case $1 in
  show) [ "$*" = "show hostnames node[7-8]" ] && printf 'node7\\nnode8\\n' ;;
  *) echo "scontrol $*" >> called; exit "${SCONTROL_STATUS:-0}" ;;
esac
"""


def executable(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


class Cluster:
    """A checkout with run scripts that only tell who they are, on a Slurm of a few stubs."""

    def __init__(self, directory: Path):
        self.checkout, self.commands = directory / "a checkout", directory / "commands"
        self.checkout.mkdir()
        self.commands.mkdir()
        for name in ("slurm.sh", "pipeline.sh"):
            (self.checkout / name).symlink_to(ROOT / name)
        (self.checkout / "setup.sh").write_text('setup() { echo "setup $1" >> called; [ ! -e notice ] || kill -USR1 $$; }\n')
        for name in ("run3b.sh", "run7b.sh"):
            (self.checkout / name).write_text(RUN_SCRIPT)
        executable(self.commands / "srun", SRUN)
        executable(self.commands / "scontrol", SCONTROL)
        executable(self.commands / "squeue", '#!/bin/sh\necho "${JOB_STATE:-RUNNING}"\n')

    def start(self, *arguments: str, nodes: int = 1, **more: str) -> subprocess.Popen[str]:
        """The batch script as Slurm starts it: a copy elsewhere, with the checkout as the directory it was submitted in."""
        copy = self.commands / "slurm_script"
        shutil.copy(ROOT / "slurm.sh", copy)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "MASTER_")) and k != "NPROC_PER_NODE"}
        job = {"SLURM_JOB_ID": "4123456", "SLURM_SUBMIT_DIR": str(self.checkout), "SLURM_JOB_NUM_NODES": str(nodes)}
        job |= {"SLURM_JOB_NODELIST": "node[7-8]", "SLURM_GPUS_ON_NODE": "8", "PATH": f"{self.commands}{os.pathsep}{os.environ['PATH']}"}
        environment = {**kept, **job, **more}
        return subprocess.Popen(
            ["bash", str(copy), *arguments], cwd="/", env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def run(self, *arguments: str, nodes: int = 1, **more: str) -> tuple[int, str]:
        """Status and output of the batch script."""
        process = self.start(*arguments, nodes=nodes, **more)
        said, errors = process.communicate(timeout=60)
        return process.returncode, said + errors

    def lines(self, name: str) -> list[str]:
        path = self.checkout / name
        return path.read_text().splitlines() if path.exists() else []

    def requeued(self) -> list[str]:
        return [line for line in self.lines("called") if line.startswith("scontrol")]

    def wait_for_nodes(self, nodes: int) -> None:
        deadline = time.monotonic() + 60
        while len(self.lines("started")) < nodes:
            assert time.monotonic() < deadline, "the run scripts were not started"
            time.sleep(0.02)


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


def test_the_3b_on_one_node_is_what_sbatch_starts(cluster: Cluster) -> None:
    assert cluster.run() == (0, "")
    assert cluster.lines("started") == ["0: 1 nodes, first node7:23456, 8 a node, run3b.sh "]
    assert [line.split()[0] for line in cluster.lines("called")] == ["setup", "srun"]
    assert "--label" not in cluster.lines("called")[1]


def test_every_node_hears_which_it_is_and_the_set_up_is_done_once_before(cluster: Cluster) -> None:
    assert cluster.run("run7b.sh", "--plan", "--gpus", "8xH200", nodes=2) == (0, "")
    first = "2 nodes, first node7:23456, 8 a node, run7b.sh --plan --gpus 8xH200"
    assert sorted(cluster.lines("started")) == [f"0: {first}", f"1: {first}"]
    assert [line.split()[0] for line in cluster.lines("called")] == ["setup", "srun"]
    assert "--label" in cluster.lines("called")[1]


def test_what_is_set_already_stays(cluster: Cluster) -> None:
    cluster.run("--rehearse", NPROC_PER_NODE="2", MASTER_PORT="29400")
    assert cluster.lines("started") == ["0: 1 nodes, first node7:29400, 2 a node, run3b.sh --rehearse"]


@pytest.mark.parametrize(
    ("statuses", "state", "ends_with", "again"),
    [
        ((0, 0), "RUNNING", 0, False),
        ((1, 0), "RUNNING", 1, False),
        ((0, 2), "RUNNING", 2, False),
        ((137, 75), "RUNNING", 137, False),
        ((75, 75), "RUNNING", 75, True),
        ((143, 143), "RUNNING", 75, True),  # preempted before the run script listened
        ((75, 75), "COMPLETING", 75, False),  # cancelled
    ],
)
def test_a_job_queues_again_only_where_the_run_has_stopped(
    cluster: Cluster, statuses: tuple[int, int], state: str, ends_with: int, again: bool
) -> None:
    for node, status in enumerate(statuses):
        (cluster.checkout / f"status{node}").write_text(str(status))
    status, said = cluster.run(nodes=2, JOB_STATE=state)
    assert status == ends_with
    assert cluster.requeued() == (["scontrol requeue 4123456"] if again else [])
    assert ("job 4123456 queues again" in said) == again


def test_where_slurm_does_not_queue_it_again_that_is_said(cluster: Cluster) -> None:
    (cluster.checkout / "status0").write_text("75")
    status, said = cluster.run(SCONTROL_STATUS="1")
    assert status == 75
    assert said == "warning: Slurm does not queue it again; the same sbatch goes on from here\n"


@pytest.mark.parametrize(("shortest_s", "call"), [("0", "requeue"), ("600", "requeuehold")])
def test_the_notice_reaches_every_node_and_the_job_goes_on_later(cluster: Cluster, shortest_s: str, call: str) -> None:
    (cluster.checkout / "stays").touch()
    process = cluster.start(nodes=2, MIN_RUN_S=shortest_s)
    cluster.wait_for_nodes(2)
    process.send_signal(signal.SIGUSR1)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75
    assert sorted(cluster.lines("heard")) == ["0 heard USR1", "1 heard USR1"]
    assert cluster.requeued() == [f"scontrol {call} 4123456"]
    assert ("scontrol release 4123456" in errors) == (call == "requeuehold")


def test_a_notice_during_the_set_up_starts_nothing(cluster: Cluster) -> None:
    (cluster.checkout / "notice").touch()
    assert cluster.run(MIN_RUN_S="0")[0] == 75
    assert cluster.lines("started") == []
    assert cluster.requeued() == ["scontrol requeue 4123456"]


def test_a_job_that_is_preempted_waits_for_its_nodes_to_save(cluster: Cluster) -> None:
    (cluster.checkout / "stays").touch()
    process = cluster.start()
    cluster.wait_for_nodes(1)
    process.terminate()
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGUSR1)  # the run script's own answer
    process.communicate(timeout=60)
    assert process.returncode == 75


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        (("run4b.sh",), {}, "there is no run4b.sh"),
        ((), {"SLURM_SUBMIT_DIR": "/"}, "/ is not the checkout: cd there, then sbatch slurm.sh"),
        (("run7b.sh",), {"SLURM_JOB_ID": ""}, "on a machine of your own: bash run7b.sh"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(cluster: Cluster, arguments: tuple[str, ...], environment: dict[str, str], words: str) -> None:
    status, said = cluster.run(*arguments, **environment)
    assert status == 2
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert words in said
    assert cluster.lines("called") == []


def test_slurm_is_asked_for_a_notice_and_to_queue_a_lost_job_again() -> None:
    asked = {line.split()[1] for line in (ROOT / "slurm.sh").read_text().splitlines() if line.startswith("#SBATCH")}
    assert {"--signal=B:USR1@600", "--requeue", "--open-mode=append", "--output=%x-%j.log", "--ntasks-per-node=1", "--nodes=1"} <= asked


def sky() -> dict[str, str]:
    """The parts of sky.yaml that are shell, and what its variables are by default."""
    task = yaml.safe_load((ROOT / "sky.yaml").read_text(encoding="utf-8"))
    assert set(task) == {"name", "workdir", "num_nodes", "resources", "envs", "secrets", "setup", "run"}
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [75]
    assert all(isinstance(value, str) for value in (task["envs"] | task["secrets"]).values())
    return {"setup": task["setup"], "run": task["run"], **task["envs"], **task["secrets"]}


def in_the_cloud(directory: Path, part: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a part of sky.yaml as SkyPilot does, in its copy of the checkout."""
    task = sky()
    program, variables = task[part], {name: value for name, value in task.items() if name not in ("setup", "run")}
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MASTER_", "NNODES", "NODE_RANK"))}
    node = {"SKYPILOT_NUM_NODES": "1", "SKYPILOT_NODE_RANK": "0", "SKYPILOT_NODE_IPS": "10.0.0.1", "SKYPILOT_NUM_GPUS_PER_NODE": "8"}
    environment = {**kept, **variables, **node, **more}
    return subprocess.run(["bash", "-c", program], cwd=directory, env=environment, capture_output=True, text=True, timeout=60)


TWO_NODES = {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2"}


@pytest.mark.parametrize(
    ("more", "started"),
    [
        ({}, "0: 1 nodes, first 10.0.0.1:, 8 a node, run3b.sh "),
        ({"RUN": "run7b.sh", "FLAGS": "--plan --json"}, "0: 1 nodes, first 10.0.0.1:, 8 a node, run7b.sh --plan --json"),
        ({**TWO_NODES, "NANOCHAT_BASE_DIR": "/shared"}, "1: 2 nodes, first 10.0.0.1:, 8 a node, run3b.sh "),
    ],
)
def test_skypilot_starts_the_run_script_that_is_named(tmp_path: Path, more: dict[str, str], started: str) -> None:
    for name in ("run3b.sh", "run7b.sh"):
        (tmp_path / name).write_text(RUN_SCRIPT)
    for node in (0, 1):
        (tmp_path / f"status{node}").write_text("75")
    assert in_the_cloud(tmp_path, "run", **more).returncode == 75
    assert (tmp_path / "started").read_text() == started + "\n"


def test_several_nodes_of_skypilot_need_a_disk_that_they_share(tmp_path: Path) -> None:
    (tmp_path / "run3b.sh").write_text(RUN_SCRIPT)
    finished = in_the_cloud(tmp_path, "run", **TWO_NODES)
    assert finished.returncode == 2
    assert finished.stderr.startswith("error: ")
    assert "--env NANOCHAT_BASE_DIR=" in finished.stderr
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize(("mirror", "package"), [("", ""), ("s3://a/b", "s3fs"), ("gs://a", "gcsfs"), ("hf://buckets/a/b", "")])
def test_skypilots_set_up_brings_what_the_mirror_needs(tmp_path: Path, mirror: str, package: str) -> None:
    (tmp_path / "setup.sh").write_text('setup() { echo "setup $1" >> called; }\n')
    (tmp_path / ".local/bin").mkdir(parents=True)
    executable(tmp_path / ".local/bin/uv", '#!/bin/sh\necho "uv $*" >> called\n')
    executable(tmp_path / "python", '#!/bin/sh\necho "python $*" >> called\n')
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    finished = in_the_cloud(tmp_path, "setup", HOME=str(tmp_path), PATH=path, CHECKPOINT_MIRROR=mirror)
    assert finished.returncode == 0, finished.stderr
    called = (tmp_path / "called").read_text().splitlines()
    assert called[0].startswith("uv venv")
    assert called[1] == "setup base"
    assert [line.split()[-1] for line in called[2:]] == ([package] if package else [])


def test_the_shell_is_clean(tmp_path: Path) -> None:
    task = sky()
    files = [ROOT / "slurm.sh"]
    for part in ("setup", "run"):
        files.append(tmp_path / f"{part}.sh")
        files[-1].write_text("#!/usr/bin/env bash\n" + task[part])
    for file in files:
        subprocess.run(["bash", "-n", str(file)], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", "--external-sources", "--exclude=SC1091", *map(str, files)], cwd=ROOT, check=True)
