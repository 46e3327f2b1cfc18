"""Training on a GPU: float32 as on the CPU, bf16 near it, resumed as it was."""

import pytest
import torch

from tests.conftest import TINY, World

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

FLAGS = [flag for flag in TINY if not flag.startswith(("--precision", "--no-compile"))]


def test_float32_gives_the_losses_of_the_cpu(world: World) -> None:
    run = [*FLAGS, "--precision=fp32", "--no-compile", "--num_iterations=20"]
    assert world.run("scripts.base_train", *run, "--model_tag=cpu", CUDA_VISIBLE_DEVICES="").returncode == 0
    finished = world.run("scripts.base_train", *run, "--model_tag=gpu")
    assert finished.returncode == 0, finished.stderr
    assert world.losses("gpu") == pytest.approx(world.losses("cpu"), abs=1e-3)


def test_bf16_compiled_learns_with_evaluation_and_samples(world: World) -> None:
    run = [flag for flag in FLAGS if not flag.startswith(("--eval", "--sample"))]
    run += ["--num_iterations=20", "--eval_every=10", "--eval_tokens=2048", "--sample_every=20", "--model_tag=gpu-bf16"]
    finished = world.run("scripts.base_train", *run)
    assert finished.returncode == 0, finished.stderr
    assert "bfloat16, compiled" in finished.stdout
    assert finished.stdout.count("sample: ") == 4
    losses = world.losses("gpu-bf16")
    assert losses[20] < 0.8 * losses[1]
