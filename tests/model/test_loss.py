"""The fused head and loss against float64 autograd."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from nanochat.model.loss import Head

CAP = 15.0


def reference(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Sum of the losses and its gradients in float64, by autograd on the plain formula."""
    h, w = hidden.double().detach().requires_grad_(), weight.double().detach().requires_grad_()
    logits = CAP * torch.tanh(h @ w.t() / CAP)
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="sum")
    return loss, *torch.autograd.grad(loss, (h, w))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("scale", [0.05, 3.0])
def test_values_and_gradients_agree_with_float64(
    dtype: torch.dtype, tolerance: float, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nanochat.plan.memory.LOGITS_PER_CHUNK_CPU", 7 * 300)  # chunks of 7 tokens, the last one shorter
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 11, 32, generator=generator).to(dtype)
    targets = torch.randint(0, 300, (3, 11), generator=generator)
    targets[1, 4:] = -1
    head = Head(32, 300, CAP)
    torch.nn.init.normal_(head.weight, std=scale, generator=generator)
    head.to(dtype)
    want_loss, want_hidden, want_weight = reference(hidden, head.weight, targets)

    hidden.requires_grad_()
    loss = head.loss_sum(hidden, targets)
    (loss * 0.5).backward()

    def relative(got: torch.Tensor, want: torch.Tensor) -> float:
        return float((got.double() - want).norm() / want.norm())

    assert hidden.grad is not None
    assert head.weight.grad is not None
    assert relative(loss, want_loss) < tolerance
    assert relative(2 * hidden.grad, want_hidden) < tolerance
    assert relative(2 * head.weight.grad, want_weight) < tolerance
    assert not hidden.grad[1, 4:].any()
    assert relative(head.losses(hidden, targets).sum(), want_loss) < tolerance
    assert not head.losses(hidden, targets)[1, 4:].any()


class LargestTensor(TorchDispatchMode):
    """Remembers how many numbers the largest tensor has that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple | list) else (result,):
            if isinstance(each, torch.Tensor):
                self.numbers = max(self.numbers, each.numel())
        return result


def test_no_tensor_of_all_tokens_times_the_vocabulary_is_ever_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nanochat.plan.memory.LOGITS_PER_CHUNK_CPU", 16 * 1000)
    head = Head(32, 1000, CAP)
    hidden, targets = torch.randn(4, 100, 32, requires_grad=True), torch.randint(0, 1000, (4, 100))
    with LargestTensor() as largest:
        head(hidden, targets).backward()
        head(hidden, targets, per_token=True)
    assert largest.numbers == max(32 * 1000, 16 * 1000)  # the weight's gradient, and a chunk's logits


def test_weights_scale_each_tokens_loss_and_gradient() -> None:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(2, 9, 16, generator=generator, requires_grad=True)
    targets = torch.randint(0, 50, (2, 9), generator=generator)
    targets[0, 3] = -1
    weights = torch.randn(2, 9, generator=generator)
    head = Head(16, 50, CAP)
    torch.nn.init.normal_(head.weight, std=0.5, generator=generator)
    got = torch.autograd.grad(head.loss_sum(hidden, targets, weights), (hidden, head.weight))
    h, w = hidden.double(), head.weight.double()
    logits = CAP * torch.tanh(h @ w.t() / CAP)
    each = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="none")
    want = torch.autograd.grad((each * weights.flatten().double()).sum(), (hidden, head.weight))
    for mine, theirs in zip(got, want, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5)
    hits = head.hits(hidden, targets)
    assert torch.equal(hits, (logits.argmax(dim=-1) == targets) | (targets == -1))
