"""Two nodes whose link is cut and joined again: two network namespaces of one machine, joined by a veth pair."""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.conftest import ROOT, TINY, World

FLAGS = (*TINY, "--num_iterations=90", "--save_every=20", "--hang_timeout=3")
NODES = ("nanochat-a", "nanochat-b")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextlib.contextmanager
def linked_nodes() -> Iterator[None]:
    """Two namespaces with a link between them; skips where this user may make none."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need root and iproute2")
    try:
        for node in NODES:
            ip("netns", "add", node)
        ip("link", "add", "left", "netns", NODES[0], "type", "veth", "peer", "name", "right", "netns", NODES[1])
        for node, name, address in zip(NODES, ("left", "right"), ("10.77.0.1/24", "10.77.0.2/24"), strict=True):
            ip("-n", node, "addr", "add", address, "dev", name)
            ip("-n", node, "link", "set", name, "up")
            ip("-n", node, "link", "set", "lo", "up")
    except subprocess.CalledProcessError as error:
        _remove()
        pytest.skip(f"network namespaces cannot be made here: {error.stderr.decode().strip()}")
    try:
        yield
    finally:
        _remove()


def _remove() -> None:
    for node in NODES:
        subprocess.run(["ip", "netns", "del", node], capture_output=True)


def start(world: World, node: int) -> subprocess.Popen[str]:
    program = (
        'set -euo pipefail\nTAG=d4 RUN="$1"; shift\nsource ./stages.sh\nLAUNCH=(python -m scripts.launch --nnodes=2 --nproc_per_node=1\n'
    )
    program += "  --node_rank=$NODE_RANK --master_addr=10.77.0.1 --master_port=29511)\n"
    program += 'training base "base training" scripts.base_train "$@"\n'
    command = ["ip", "netns", "exec", NODES[node], "bash", "-c", program, "run3b.sh", str(world.base / "runs/parted")]
    environment = world.environment(
        PATH=f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}",
        NODE_RANK=str(node),
        NNODES="2",
        MAX_RESTARTS="9",
        GLOO_SOCKET_IFNAME=("left", "right")[node],
        TORCH_ELASTIC_SHUTDOWN_TIMEOUT="3",
    )
    return subprocess.Popen(
        [*command, *FLAGS, "--model_tag=parted"], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_a_link_that_is_cut_and_joined_again(world: World) -> None:
    together = world.run("scripts.base_train", *FLAGS, "--model_tag=together", nproc=2)
    assert together.returncode == 0, together.stderr
    path, deadline = world.base / "runs/parted/base/metrics.jsonl", time.monotonic() + 90
    with linked_nodes():
        nodes = [start(world, node) for node in (0, 1)]
        try:
            while not (path.exists() and '"step": 30,' in path.read_text()) and time.monotonic() < deadline:
                time.sleep(0.02)
            ip("-n", NODES[0], "link", "set", "left", "down")
            time.sleep(12)
            ip("-n", NODES[0], "link", "set", "left", "up")
            said = [node.communicate(timeout=200)[0] for node in nodes]
        finally:
            for node in nodes:
                node.kill()
    assert [node.returncode for node in nodes] == [0, 0], said[0] + said[1]
    assert "no progress for 3 s" in said[0]
    assert "going on after step 20" in said[0]
    losses, expected = world.losses("parted"), world.losses("together")
    assert losses.keys() == expected.keys()
    assert list(losses.values()) == pytest.approx(list(expected.values()), rel=2e-4)
