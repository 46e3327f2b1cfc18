"""What a new model's first layer looks at."""

import pytest
import torch
from torch import Tensor

from nanochat.model.config import GPTConfig
from nanochat.model.elementwise import rms_norm
from nanochat.model.gpt import GPT
from nanochat.model.init import IN_COMMON, init_weights, look_back

LENGTH = 64


def scores(model: GPT) -> Tensor:
    """Mean over random tokens of a first layer's scores before softmax, by head and distance: (H, LENGTH)."""
    ids = torch.randint(0, 500, (8, LENGTH), generator=torch.Generator().manual_seed(1))
    trunk = model.model
    x = rms_norm(trunk.embed_tokens(ids), 1e-6)
    q, k, _ = trunk.layers[0].before_attention(x, trunk.cos[:LENGTH], trunk.sin[:LENGTH])
    every = (q @ k.transpose(-1, -2) / q.size(-1) ** 0.5).mean(0)
    return torch.stack([every.diagonal(-distance, 1, 2).mean(-1) for distance in range(LENGTH)], dim=1)


@pytest.mark.parametrize("depth", [2, 3, 10, 20])
@torch.no_grad()
def test_the_first_heads_begin_by_looking_at_the_tokens_before(depth: int) -> None:
    model = GPT(GPTConfig.from_depth(depth, 500, LENGTH))
    init_weights(model, 3)
    before = scores(model)
    whole = {name: p.clone() for name, p in model.named_parameters()}
    look_back(model)
    after = scores(model)
    heads = min(4, model.config.num_heads)
    assert after[:heads].argmax(dim=1).tolist() == list(range(1, heads + 1))
    far = after[:heads, 8:]
    assert (after[:heads].amax(dim=1) - far.amax(dim=1) > 2).all()  # nats: the token before counts for several that are far away
    assert (after[heads:] < 0.5 * after[:heads].amax(dim=1).min()).all()
    assert (before < 0.5 * after[:heads].amax(dim=1).min()).all()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, whole[name])}
    assert changed == {"model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight"}


@torch.no_grad()
def test_rows_of_the_embedding_have_a_coordinate_in_common() -> None:
    model = GPT(GPTConfig.from_depth(2, 500, LENGTH))
    init_weights(model, 3)
    model.model.embed_tokens.weight[7] *= 20
    look_back(model)
    rows = torch.nn.functional.normalize(model.model.embed_tokens.weight, dim=1)
    assert rows[:, 0].tolist() == pytest.approx([IN_COMMON] * 500, abs=1e-5)


@torch.no_grad()
def test_however_long_a_sequence_the_heads_stay_within_what_there_can_be() -> None:
    model = GPT(GPTConfig.from_depth(1, 500, 1 << 17))
    init_weights(model, 3)
    look_back(model)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert scores(model)[0].argmax() == 1
