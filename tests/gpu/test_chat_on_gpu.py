"""The chat stages and generation in batches on a GPU."""

import json

import pytest
import torch

from nanochat.engine.batch import generate_batch
from nanochat.model.directory import load_model
from tests.conftest import World

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def test_every_stage_runs_and_a_batch_gives_what_each_prompt_gives_alone(world: World) -> None:
    quiet = ("--eval_every=-1", "--sample_every=-1")
    size = ("--depth=2", "--max_seq_len=256", "--device_batch_size=4", "--total_batch_size=4096")
    made = ("--tasks=SpellingBee,Arithmetic", "--weights=SpellingBee=0.01,Arithmetic=0.02")
    for module, *args in (
        ("scripts.base_train", *size, *quiet, "--num_iterations=20"),
        ("scripts.mid_train", *made, "--num_iterations=60", "--eval_every=30", "--sample_every=60"),
        ("scripts.chat_sft", *made, *quiet, "--num_iterations=10"),
        ("scripts.chat_rl", "--tasks=Arithmetic", *quiet, "--num_iterations=2", "--examples_per_step=4", "--max_new_tokens=32"),
        ("scripts.chat_eval", "-i", "rl", "-a", "Arithmetic,SpellingBee", "-x", "32"),
    ):
        finished = world.run(module, *args, *(() if module == "scripts.chat_eval" else ("--model_tag=gpu",)))
        assert finished.returncode == 0, finished.stderr
    rows = [json.loads(line) for line in (world.base / "runs/gpu/mid/metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < 0.6 * losses[0]

    model, tokenizer = load_model(world.base / "runs/gpu/rl/model", torch.device("cuda"), torch.float32)
    prompts = [[tokenizer.bos_id, *tokenizer.encode(text)] for text in ("a", "a longer prompt of more words", "The " * 20)]
    together = generate_batch(model, tokenizer, prompts, 24, temperature=0, seeds=[0, 1, 2])
    alone = [generate_batch(model, tokenizer, [prompt], 24, temperature=0, seeds=[0])[0] for prompt in prompts]
    assert [row.ids for row in together] == [row.ids for row in alone]
