"""A model to talk to."""

import json
from pathlib import Path

import pytest

from tests.conftest import World

TALK = [
    {"messages": [{"role": "user", "content": f"Say {word}."}, {"role": "assistant", "content": f"{word}!"}]}
    for word in ("yes", "no", "maybe")
]
CALL = [{"type": "python", "text": "6*7"}, {"type": "python_output", "text": "42"}, {"type": "text", "text": "42!"}]


@pytest.fixture(scope="session")
def world_that_talks(world_of_text: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world with a chat model that knows a few answers by heart; nobody writes to it."""
    world = world_of_text.copy(tmp_path_factory.mktemp("talking") / "base dir")
    file: Path = tmp_path_factory.mktemp("talk") / "talk.jsonl"
    calls = {"messages": [{"role": "user", "content": "What is 6*7?"}, {"role": "assistant", "content": CALL}]}
    file.write_text("".join(json.dumps(one) + "\n" for one in [*TALK, calls] * 4))
    base = ("--depth=2", "--max_seq_len=1024", "--device_batch_size=1", "--total_batch_size=1024", "--num_iterations=1")
    quiet = ("--model_tag=talking", "--precision=fp32", "--no-compile", "--eval_every=-1", "--sample_every=-1", "--save_every=-1")
    rows = ("--max_seq_len=192", "--device_batch_size=4", "--total_batch_size=768")
    sft = (f"--conversations={file}", "--tasks=none", "--num_iterations=60", "--init_lr_frac=1", "--warmdown_ratio=0.3", "--source=base")
    for command in (("scripts.base_train", *base, *quiet), ("scripts.chat_sft", *sft, *rows, *quiet)):
        finished = world.run(*command)
        assert finished.returncode == 0, finished.stderr
    return world


@pytest.fixture(scope="module")
def talking(world_that_talks: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world with a chat model, for the tests of one file."""
    return world_that_talks.copy(tmp_path_factory.mktemp("talk") / "base dir")
