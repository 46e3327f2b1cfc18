"""Attention by products is attention."""

import pytest
import torch
import torch.nn.functional as F

from nanochat.model.attention import attention_by_products, fused_attention


@pytest.mark.parametrize("tokens", [1, 2, 3, 5, 64, 67])
def test_products_and_the_fused_kernel_agree_with_the_formula(tokens: int) -> None:
    generator = torch.Generator().manual_seed(tokens)
    q, k, v, upstream = torch.randn(4, 2, 3, tokens, 16, generator=generator, dtype=torch.float64).unbind()
    seen = torch.ones(tokens, tokens, dtype=torch.bool).tril()
    results = []
    for attend in (
        lambda q, k, v: torch.softmax((q @ k.mT / 4).masked_fill(~seen, float("-inf")), dim=-1) @ v,
        attention_by_products,
        fused_attention,
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
    ):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        y = attend(*leaves)
        results.append((y, *torch.autograd.grad(y, leaves, upstream)))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=0, atol=1e-12)
