"""The planner against a GPU: one rank of eight, its memory and its speed."""

import json

import pytest
import torch

from tests.conftest import World

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

GIB = 2**30


def has(memory_gib: float) -> bool:
    """Whether the GPU is that large."""
    return torch.cuda.is_available() and torch.cuda.get_device_properties(0).total_memory / GIB >= memory_gib


@pytest.mark.parametrize(
    ("depth", "flags", "needs_gib"),
    [
        (12, ("--device_batch_size=32", "--total_batch_size=524288"), 40),
        (12, ("--device_batch_size=16", "--total_batch_size=524288", "--micro_batch_size=16", "--recompute=block"), 20),
        (20, ("--device_batch_size=32", "--total_batch_size=524288", "--micro_batch_size=16", "--recompute=none"), 60),
        (38, ("--device_batch_size=48", "--total_batch_size=786432"), 78),
        (38, ("--device_batch_size=48", "--total_batch_size=786432", "--micro_batch_size=12", "--recompute=none"), 78),
        (52, ("--device_batch_size=24", "--total_batch_size=393216"), 78),
    ],
)
def test_memory_is_within_five_percent_of_the_plan(world: World, depth: int, flags: tuple[str, ...], needs_gib: float) -> None:
    if not has(needs_gib):
        pytest.skip(f"needs {needs_gib} GiB")
    command = (f"--depth={depth}", "--world_size=8", "--simulate", "--num_iterations=2", "--warmup_s=0", "--precision=bf16", "--json")
    finished = world.run("scripts.bench_train", *command, *flags)
    assert finished.returncode == 0, finished.stderr
    row = json.loads(finished.stdout)
    assert row["peak_allocated_gib"] == pytest.approx(row["predicted_allocated_gib"], rel=0.05)
    if has(78) and not has(100):
        assert row["peak_reserved_gib"] < 76


def test_the_head_never_holds_the_logits_of_a_micro_batch() -> None:
    from nanochat.model.loss import Head

    head = Head(256, 65_536, 15.0).to("cuda", torch.bfloat16)
    torch.nn.init.normal_(head.weight, std=0.02)
    hidden = torch.randn(16, 2048, 256, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    targets = torch.randint(0, 65_536, (16, 2048), device="cuda")
    head.chunk_loss = torch.compile(head.chunk_loss, dynamic=False)
    head(hidden, targets).backward()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    head(hidden, targets).backward()
    all_logits = 16 * 2048 * 65_536 * 2
    assert torch.cuda.max_memory_allocated() - before < all_logits / 2


def test_the_default_kernels_prove_themselves() -> None:
    from nanochat.parallel.kernels import CUDNN_FROM, settle
    from nanochat.parallel.proofs import Size

    size = Size(torch.device("cuda", 0), 12, 2048, 65_536)
    recipe = settle("bf16", "auto", True, size, None).recipe
    assert (recipe.attention == "cudnn") == (torch.cuda.get_device_capability() >= CUDNN_FROM and not torch.version.hip)


def test_everything_that_this_gpu_may_compute_with_is_right() -> None:
    from nanochat.parallel.attention import installed_packages
    from nanochat.parallel.proofs import Size, names, prove
    from nanochat.tune.prove import precisions

    device = torch.device("cuda", 0)
    size = Size(device, 12, 2048, 65_536)
    found = [prove(name, p, size) for p in precisions(device) for name in names(p, device, installed_packages(), True, autotunes=False)]
    struck = [proof for proof in found if not proof.passed]
    assert {proof.name for proof in struck} <= {"attention=cudnn", "attention=fa3", "attention=fa4"}, struck


def test_tuning_finds_a_way_that_training_then_takes(world: World) -> None:
    size = ("--depth=4", "--max_seq_len=256", "--device_batch_size=8")
    tuned = world.run("scripts.tune", *size, "--vocab_size=700", "--total_batch_size=4096", "--world_size=1", "--quick")
    assert tuned.returncode == 0, tuned.stdout + tuned.stderr
    trained = world.run("scripts.base_train", *size, "--total_batch_size=4096", "--num_iterations=3", "--model_tag=tuned")
    assert "that scripts.tune measured here" in trained.stdout, trained.stdout + trained.stderr
