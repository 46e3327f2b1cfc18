"""The training loop by itself: what it does with a step that teaches nothing, and when an evaluation finds no memory."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import torch

from nanochat.data.loader import Batch, Split
from nanochat.model.config import GPTConfig
from nanochat.optim.build import Optimizers
from nanochat.parallel.ranks import Ranks
from nanochat.parallel.sharding import sharded_model
from nanochat.plan.recipe import Recipe
from nanochat.plan.recompute import Recompute
from nanochat.train.bad_steps import Guard, PassedSamples
from nanochat.train.checkpoint import Checkpoints, RunState
from nanochat.train.hang_watch import HangWatch
from nanochat.train.metrics import Metrics
from nanochat.train.rl_settings import RlSettings
from nanochat.train.trainer import Evaluation, Trainer
from tests.processes import run_ranks

STEPS = 4
TAUGHT = 2  # steps whose answers are worth something


def _batches(split: Split, first_sample: int) -> Iterator[Batch]:
    while True:
        ids = torch.arange(64).view(4, 16)[: split.micro_batch_size]
        worth = 1.0 if first_sample // split.samples_per_step < TAUGHT else 0.0
        yield Batch(ids, ids, 64.0, torch.full(ids.shape, worth))
        first_sample += split.micro_batch_size


def _train(r: Ranks, directory: str) -> tuple[list[float], list[float], list[int]]:
    config = GPTConfig.from_depth(2, 300, 64)
    model = sharded_model(
        config,
        r,
        r.mesh(),
        torch.float32,
        0,
        recompute=Recompute.parse("none", 2),
        reshard=False,
        recipe=Recipe(compile="off"),
        std_of=lambda *_: 0.05,
    )
    weight = model.model.layers[0].mlp.fc1.weight  # type: ignore[union-attr]
    seen = [weight.to_local().detach().clone()]  # type: ignore[union-attr,operator]
    evaluated: list[int] = []

    def evaluation() -> dict[str, float]:
        evaluated.append(trainer.split.micro_batch_size)
        if trainer.split.micro_batch_size == 4:
            raise torch.OutOfMemoryError("an evaluation that is larger than what is left")
        seen.append(weight.to_local().detach().clone())  # type: ignore[union-attr,operator]
        return {}

    metrics = Metrics(Path(directory), "", 0)
    trainer = Trainer(
        ranks=r,
        model=model,
        optimizers=Optimizers(model, RlSettings(), torch.float32),
        split=Split(0, 1, 4, 1),
        seq_len=16,
        num_iterations=STEPS,
        batches=_batches,
        evaluations=[Evaluation("", 1, evaluation)],
        checkpoints=Checkpoints(Path(directory) / "checkpoints", r),
        metrics=metrics,
        watch=HangWatch(-1, Path(directory), 0),
        guard=Guard(r, metrics, PassedSamples(Path(directory) / "passed_samples.json"), lambda batches, split: {}, max_bad_steps=10),
        save_every=-1,
        grad_clip=1.0,
        flops_per_token=1.0,
        peak_flops=None,
        usd_per_hour=0.0,
        out_of_memory=lambda step, updating: Split(0, 1, 2, 2),
        plan_check=None,
    )
    trainer.run(RunState())
    trainer.checkpoints.close()
    moved = [float((after - before).norm()) for before, after in itertools.pairwise(seen)]
    metrics.close()
    rows = [json.loads(line) for line in (Path(directory) / "metrics.jsonl").read_text().splitlines()]
    return moved, [row["lr_scale"] for row in rows], evaluated


def test_a_step_without_a_gradient_moves_nothing_and_an_evaluation_is_tried_again_with_less(tmp_path: Path) -> None:
    [(moved, scales, evaluated)] = run_ranks(1, _train, str(tmp_path))
    assert len(moved) == len(scales) == STEPS
    assert all(each > 1e-4 for each in moved[:TAUGHT])
    assert moved[TAUGHT:] == [0.0] * (STEPS - TAUGHT)  # Muon's momentum alone would go on at full length
    assert scales[TAUGHT:] == [0.0] * (STEPS - TAUGHT)
    assert evaluated == [4, *[2] * STEPS]
