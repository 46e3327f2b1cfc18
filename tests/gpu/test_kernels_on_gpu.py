"""Triton kernels in bf16 on a GPU with a copy engine: at sizes of the models and at others, and in one graph for all layers."""

import pytest
import torch

from nanochat.model.fused_mlp import product_times_slope, relu_squared_of_product
from nanochat.optim.newton_schulz import has_copy_engine, symmetric_product
from nanochat.parallel.proofs import Size, prove, relative_error

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or not has_copy_engine(torch.device("cuda", 0)), reason="needs a GPU with a copy engine"
)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator(device="cuda").manual_seed(seed + shape[-1])
    return torch.randn(*shape, generator=generator, device="cuda", dtype=torch.bfloat16)


@pytest.mark.parametrize("name", ["mlp=fused", "muon=halves", "muon=gram"])
@pytest.mark.parametrize("depth", [12, 38, 52])
def test_every_way_is_right_at_true_sizes(name: str, depth: int) -> None:
    proof = prove(name, "bf16", Size(torch.device("cuda", 0), depth, 2048, 65_536))
    assert proof.passed, proof


@pytest.mark.parametrize(("tokens", "width"), [(4096, 2432), (1000, 200), (130, 64)])
def test_products_are_finished_at_any_size(tokens: int, width: int) -> None:
    x, w1, g, w2 = random(tokens, width), random(4 * width, width), random(tokens, width, seed=1), random(width, 4 * width)
    y = relu_squared_of_product(x, w1)
    assert relative_error(y, (x.float() @ w1.float().t()).relu().square()) < 0.01
    assert relative_error(product_times_slope(g, w2, y), 2 * y.float().sqrt() * (g.float() @ w2.float())) < 0.01


@pytest.mark.parametrize("count", [1, 3])  # of a single matrix torch may keep any stride
@pytest.mark.parametrize(("rows", "columns"), [(2432, 2432), (200, 800), (64, 64)])
def test_symmetric_products_are_those_of_torch(count: int, rows: int, columns: int) -> None:
    x = random(4, rows, columns)[:count] / columns**0.5
    gram = symmetric_product(x, x.mT)
    assert relative_error(gram, x.float() @ x.float().mT) < 0.01
    assert torch.equal(gram, gram.mT)
    want = 2 * gram.float() @ gram.float() + 0.5 * gram.float()
    assert relative_error(symmetric_product(gram, gram, gram, 0.5, 2.0), want) < 0.01
