"""A finished model with a flipped bit: nobody takes it, and its training command writes it again."""

import shutil
from pathlib import Path

from tests.conftest import TINY, World, wrong_request

FLAGS = (*TINY, "--num_iterations=30", "--model_tag=damaged", "--eval_every=15", "--eval_tokens=2048")


def test_a_flipped_bit_is_named_and_the_training_command_mends_it(world: World, trained: Path) -> None:
    stage = world.base / "runs/damaged/base"
    shutil.copytree(trained.parent, stage)
    weights = stage / "model/model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:])
    asked = world.run("scripts.chat_cli", "-i", "base", "--model_tag=damaged", "-p", "x", "--no-compile")
    wrong_request(asked, str(weights), "its checksum is not the one it was written with", "training command again")
    again = world.run("scripts.base_train", *FLAGS)
    assert again.returncode == 0, again.stderr
    assert f"warning: {weights} is missing or damaged" in again.stderr
    assert weights.read_bytes() == whole
    assert "already done" in world.run("scripts.base_train", *FLAGS).stdout
    weights.unlink()
    shutil.rmtree(stage / "checkpoints")
    wrong_request(world.run("scripts.base_train", *FLAGS), str(weights), "it is not there", "copy or fetch the model again")
