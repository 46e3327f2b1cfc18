"""Many kills at random moments of one run."""

import random
import subprocess
import time

import pytest

from tests.conftest import ROOT, TINY, World

FLAGS = (*TINY, "--num_iterations=120", "--save_every=7")


@pytest.mark.slow
def test_thirty_random_kills_change_nothing(world: World) -> None:
    assert world.run("scripts.base_train", *FLAGS, "--model_tag=calm").returncode == 0
    generator = random.Random(0)
    command = world.arguments("scripts.base_train", *FLAGS, "--model_tag=killed")
    for _ in range(30):
        process = subprocess.Popen(command, cwd=ROOT, env=world.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(generator.uniform(2, 7))
        process.kill()
        process.wait()
    finished = world.run("scripts.base_train", *FLAGS, "--model_tag=killed")
    assert finished.returncode == 0, finished.stderr
    assert world.losses("killed") == world.losses("calm")
