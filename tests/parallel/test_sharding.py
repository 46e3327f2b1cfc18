"""A model that is shared out: the same start, the same losses and gradients, at any number of ranks and nodes."""

import math

import numpy as np
import pytest
import torch
from torch.distributed.tensor import DTensor

from nanochat.model.config import GPTConfig
from nanochat.model.gpt import GPT
from nanochat.model.init import init_weights, look_back
from nanochat.parallel import sharding
from nanochat.parallel.ranks import Ranks
from nanochat.parallel.sharding import begin_with, clip_gradients, reshard, rows_held, sharded_model
from nanochat.plan.recipe import Recipe
from nanochat.plan.recompute import Recompute
from tests.processes import run_ranks

CONFIG = GPTConfig.from_depth(3, 301, 32)
SEQUENCES = 12


def random_std(_name: str, _parameter: torch.Tensor) -> float:
    return 0.05


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    rows = torch.randint(0, 301, (SEQUENCES, 33), generator=torch.Generator().manual_seed(1))
    return rows[:, :-1], rows[:, 1:]


def one_step(ranks: Ranks, nodes: int, give_up: bool, dtype: torch.dtype) -> tuple[float, float, dict[str, np.ndarray], float, list[str]]:
    """Loss, norm of the gradient, gradients, share of the numbers that this rank holds; and the types of parameters after an evaluation."""
    r = Ranks(ranks.rank, ranks.world_size, ranks.world_size // nodes, ranks.device)
    model = sharded_model(
        CONFIG, r, r.mesh(), dtype, 7, recompute=Recompute(1, 2), reshard=give_up, recipe=Recipe(compile="off"), std_of=random_std
    )
    held = sum(p.to_local().numel() for p in model.parameters()) / sum(p.numel() for p in model.parameters())
    ids, targets = (each[r.rank :: r.world_size] for each in batch())
    with torch.no_grad():
        model(ids, targets, per_token=True)
    reshard(model)
    kinds = sorted({f"{type(p).__name__} {p.dtype}" for p in model.parameters()})
    loss = model(ids, targets) / (SEQUENCES * 32)
    (loss * r.world_size).backward()
    gradients = {name: p.grad.full_tensor().numpy().copy() for name, p in model.named_parameters()}
    norm = clip_gradients(model, 1e-3)
    clipped = math.sqrt(sum(float(p.grad.full_tensor().square().sum()) for p in model.parameters()))
    assert clipped == pytest.approx(1e-3, rel=1e-3)
    return r.sum_(loss.detach()).item(), float(norm), gradients, held, kinds


@pytest.fixture(scope="module")
def plain() -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of the model in one piece."""
    model = GPT(CONFIG)
    init_weights(model, 7, std_of=random_std)
    loss = model(*batch()) / (SEQUENCES * 32)
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("ranks", "nodes", "give_up"), [(1, 1, False), (2, 1, True), (3, 1, False), (4, 2, True)])
def test_loss_and_gradients_are_those_of_the_model_in_one_piece(
    plain: tuple[float, dict[str, torch.Tensor]], ranks: int, nodes: int, give_up: bool
) -> None:
    loss, gradients = plain
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients.values()))
    for got_loss, got_norm, got, held, kinds in run_ranks(ranks, one_step, nodes, give_up, torch.float32):
        assert got_loss == pytest.approx(loss, abs=1e-6)
        assert got_norm == pytest.approx(norm, rel=1e-5)
        assert held == pytest.approx(nodes / ranks, rel=0.05)  # of every number one copy a node
        assert kinds == ["DTensor torch.float32"]
        assert set(got) == set(gradients)
        for name, gradient in gradients.items():
            assert np.linalg.norm(got[name] - gradient.numpy()) < 1e-5 * float(gradient.norm()), name


def test_bf16_keeps_masters_and_gradients_in_float32_and_comes_near(plain: tuple[float, dict[str, torch.Tensor]]) -> None:
    loss, gradients = plain
    for got_loss, _, got, _, kinds in run_ranks(2, one_step, 1, True, torch.bfloat16):
        assert got_loss == pytest.approx(loss, rel=1e-3)
        assert kinds == ["DTensor torch.float32"]
        for name, gradient in gradients.items():
            assert got[name].dtype == np.float32
            assert np.linalg.norm(got[name] - gradient.numpy()) < 0.05 * float(gradient.norm()), name


def start(ranks: Ranks, seed: int) -> dict[str, np.ndarray]:
    model = sharded_model(
        CONFIG, ranks, ranks.mesh(), torch.float32, seed, recompute=Recompute(0, 3), reshard=True, recipe=Recipe(compile="off")
    )
    assert all(isinstance(p, DTensor) for p in model.parameters())
    return {name: p.full_tensor().detach().numpy().copy() for name, p in model.named_parameters()}


def test_the_start_is_the_same_at_any_number_of_ranks_and_another_for_another_seed() -> None:
    (one,), (three, *_), (other,) = run_ranks(1, start, 5), run_ranks(3, start, 5), run_ranks(1, start, 6)
    whole = GPT(CONFIG)
    init_weights(whole, 5)
    for name, parameter in whole.named_parameters():
        assert (one[name] == three[name]).all(), name
        assert (one[name] == parameter.detach().numpy()).all(), name
    assert (one["model.embed_tokens.weight"] != other["model.embed_tokens.weight"]).mean() > 0.99
    layers = [one[f"model.layers.{layer}.mlp.fc1.weight"] for layer in (0, 1)]
    assert abs(np.corrcoef(layers[0].ravel(), layers[1].ravel())[0, 1]) < 0.02
    assert abs(np.corrcoef(layers[0][:128].ravel(), layers[0][64:192].ravel())[0, 1]) < 0.02  # blocks of rows are not alike


def embedding_begun(ranks: Ranks, nodes: int, rows: np.ndarray) -> np.ndarray:
    """The whole embedding after the first rank's rows were shared out."""
    r = Ranks(ranks.rank, ranks.world_size, ranks.world_size // nodes, ranks.device)
    model = sharded_model(
        CONFIG, r, r.mesh(), torch.float32, 7, recompute=Recompute(0, 0), reshard=False, recipe=Recipe(compile="off"), std_of=random_std
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "ROWS_AT_ONCE", 64)
        begin_with(model.model.embed_tokens.weight, torch.from_numpy(rows) if r.is_first else None, r)
    weight = model.model.embed_tokens.weight
    assert isinstance(weight, DTensor)
    return weight.full_tensor().detach().numpy().copy()


@pytest.mark.parametrize(("ranks", "nodes"), [(1, 1), (3, 1), (4, 2)])
def test_rows_of_the_first_rank_reach_whoever_holds_them_and_zeros_change_nothing(ranks: int, nodes: int) -> None:
    model = GPT(CONFIG)
    init_weights(model, 7, std_of=random_std)
    rows = np.random.default_rng(0).standard_normal((301, CONFIG.hidden_size)).astype(np.float32)
    rows[[0, 70, 300]] = 0
    want = np.where(rows.any(axis=1, keepdims=True), rows, model.model.embed_tokens.weight.detach().numpy())
    for got in run_ranks(ranks, embedding_begun, nodes, rows):
        np.testing.assert_array_equal(got, want)


def looking_back(ranks: Ranks, nodes: int) -> dict[str, np.ndarray]:
    """The whole weights of a model that begins so."""
    r = Ranks(ranks.rank, ranks.world_size, ranks.world_size // nodes, ranks.device)
    model = sharded_model(
        CONFIG, r, r.mesh(), torch.float32, 7, recompute=Recompute(1, 2), reshard=False, recipe=Recipe(compile="off"), std_of=random_std
    )
    look_back(model, rows_held)
    return {name: p.full_tensor().detach().numpy().copy() for name, p in model.named_parameters()}


@pytest.mark.parametrize(("ranks", "nodes"), [(1, 1), (3, 1), (4, 2)])
def test_shared_out_the_first_heads_look_back_alike(ranks: int, nodes: int) -> None:
    model = GPT(CONFIG)
    init_weights(model, 7, std_of=random_std)
    look_back(model)
    want = {name: p.detach().numpy() for name, p in model.named_parameters()}
    for got in run_ranks(ranks, looking_back, nodes):
        for name, weights in want.items():
            np.testing.assert_array_equal(got[name], weights, err_msg=name)
