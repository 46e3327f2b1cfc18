"""The plan that is kept with a run."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nanochat.common.errors import UserError
from nanochat.parallel.ranks import Ranks
from nanochat.plan.choose import StepPlan
from nanochat.plan.hardware import parse_gpus
from nanochat.plan.recipe import Recipe
from nanochat.plan.sizes import Shape
from nanochat.plan.step import Job
from nanochat.train.settings import BaseTrainSettings
from nanochat.train.step_plan import KeptPlan, half_of, horizon, same_gpus, split_of

SETTINGS = BaseTrainSettings(depth=38, device_batch_size=48, total_batch_size=786_432)


def job(kind: str = "H100-80GB", world_size: int = 8) -> Job:
    return Job(Shape(38), parse_gpus(kind)[1], world_size, world_size, 786_432, 48)


def chosen(path: Path, what: Job, settings: BaseTrainSettings) -> StepPlan:
    return KeptPlan(path, settings, what.world_size, what.gpu).choose(what)


def test_the_plan_stays_what_it_was_until_the_question_changes(tmp_path: Path) -> None:
    path = tmp_path / "step_plan.json"
    first = chosen(path, job(), SETTINGS)
    crowded = replace(job(), gpu=replace(job().gpu, memory_gib=50.0))
    assert chosen(path, crowded, SETTINGS).micro_batch_size == first.micro_batch_size
    asked = replace(SETTINGS, micro_batch_size=2)
    assert chosen(path, job(), asked).micro_batch_size == 2
    other = chosen(path, job("H200"), SETTINGS)
    assert other.micro_batch_size >= first.micro_batch_size
    path.write_text("{")
    assert chosen(path, job(), SETTINGS).micro_batch_size == first.micro_batch_size


def test_the_kernels_stay_what_they_were_until_the_question_changes(tmp_path: Path) -> None:
    path = tmp_path / "step_plan.json"
    kept = KeptPlan(path, SETTINGS, 8, job().gpu)
    assert kept.kernels() is None
    recipe = Recipe(attention="cudnn", muon="gram")
    kept.choose(replace(job(), recipe=recipe))
    assert kept.kernels() == ("bf16", recipe)
    assert KeptPlan(path, replace(SETTINGS, recipe="muon=plain"), 8, job().gpu).kernels() is None
    assert KeptPlan(path, replace(SETTINGS, compile=False), 8, job().gpu).kernels() is None
    assert KeptPlan(path, replace(SETTINGS, device_batch_size=8), 4, job().gpu).kernels() == ("bf16", recipe)
    assert KeptPlan(path, SETTINGS, 8, job("H200").gpu).kernels() is None
    written = json.loads(path.read_text())
    del written["kernels"]["fp8_mlp"]  # as an older version wrote it
    path.write_text(json.dumps(written))
    assert kept.kernels() == ("bf16", recipe)
    written["kernels"]["attention"] = "by hand"
    path.write_text(json.dumps(written))
    assert kept.kernels() is None


def test_half_is_kept_and_the_total_never_changes(tmp_path: Path) -> None:
    kept = KeptPlan(tmp_path / "step_plan.json", SETTINGS, 8, job().gpu)
    plan = kept.choose(job())
    total = plan.micro_batch_size * plan.grad_accum_steps
    sizes = []
    while half := half_of(plan):
        assert half.micro_batch_size <= plan.micro_batch_size // 2
        assert half.micro_batch_size * half.grad_accum_steps == total
        sizes.append(half.micro_batch_size)
        kept.keep(half)
        assert kept.choose(job()).micro_batch_size == half.micro_batch_size
        plan = half
    assert sizes[-1] == 1
    split = split_of(plan, Ranks(3, 8, 8, torch.device("cpu")))
    assert split.samples_per_step * 2048 == 786_432


def test_hours_and_dollars_set_the_horizon_and_keep_it(tmp_path: Path) -> None:
    kept = tmp_path / "horizon.json"
    quiet = replace(SETTINGS, eval_every=-1)
    plan = chosen(tmp_path / "step_plan.json", job(), SETTINGS)
    steps = horizon(replace(quiet, target_hours=20), plan, 3.0, kept)
    assert steps * plan.time.total == pytest.approx(20 * 3600, rel=1e-3)
    dollars = horizon(replace(quiet, target_usd=500), plan, 3.0, kept)
    assert 499 < dollars * plan.time.total / 3600 * 8 * 3.0 <= 500
    assert horizon(replace(quiet, target_hours=20, target_usd=500), plan, 3.0, kept) == min(steps, dollars)
    assert horizon(replace(quiet, target_hours=20, num_iterations=7), plan, 3.0, kept) == 7
    half = half_of(plan)
    assert half is not None
    slower = replace(half, time=replace(half.time, products=2 * half.time.products))
    assert horizon(replace(quiet, target_hours=20, target_usd=500), slower, 3.0, kept) == min(steps, dollars)
    evaluated = horizon(replace(SETTINGS, target_hours=20), plan, 3.0, kept)
    assert evaluated == pytest.approx(steps / (1 + 20 * 524_288 / 3 / (250 * 786_432)), abs=1)
    with pytest.raises(UserError, match="--usd_per_gpu_hour"):
        horizon(replace(quiet, target_usd=500), plan, 0.0, kept)
    with pytest.raises(UserError, match="less than one step"):
        horizon(replace(quiet, target_hours=0.0001), plan, 3.0, kept)


def test_gpus_of_several_kinds_are_refused_by_name() -> None:
    same_gpus(["NVIDIA H100 80GB HBM3"] * 8)
    with pytest.raises(UserError, match="1 × NVIDIA A100-SXM4-80GB, 3 × NVIDIA H100 80GB HBM3"):
        same_gpus(["NVIDIA H100 80GB HBM3"] * 3 + ["NVIDIA A100-SXM4-80GB"])
