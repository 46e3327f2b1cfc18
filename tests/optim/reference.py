"""The optimizers once more, in float64 and one matrix at a time, as the formulas are written down."""

import zlib

import torch
from torch import Tensor

from nanochat.model.config import GPTConfig
from nanochat.model.gpt import GPT
from nanochat.optim.settings import OptimizerSettings

VOCAB_SIZE = 301  # a prime: the rows of embedding and head divide by no number of ranks


def small_model(depth: int) -> GPT:
    """A model with small weights, so that what is lost when an update is added to them in float32 is small beside it."""
    model = GPT(GPTConfig.from_depth(depth, VOCAB_SIZE, 16))
    generator = torch.Generator().manual_seed(depth)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.01, generator=generator)
    return model


def gradient(name: str, like: Tensor, step: int) -> Tensor:
    """A gradient that is the same in every process, whole."""
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(zlib.crc32(f"{name} {step}".encode())))


def newton_schulz_float64(x: Tensor) -> Tensor:
    """One matrix, five steps."""
    x = x.double()
    transposed = x.shape[0] > x.shape[1]
    x = x.T if transposed else x
    x = x / x.norm()
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
    return x.T if transposed else x


class MuonReference:
    """Muon of one matrix."""

    def __init__(self, weight: Tensor, beta2: float = 0.0, hold_norm: bool = False):
        self.weight = weight.detach().double().clone()
        self.norm = self.weight.norm() if hold_norm else None
        self.first = torch.zeros_like(self.weight)
        self.beta2, self.squares = beta2, []  # type: ignore[var-annotated]

    def step(self, gradient: Tensor, lr: float, momentum: float) -> None:
        """One update."""
        g = gradient.double()
        self.first = momentum * self.first + (1 - momentum) * g
        rows, cols = g.shape
        update = newton_schulz_float64((1 - momentum) * g + momentum * self.first)
        if self.beta2:
            self.squares.append(update.square().mean(dim=1, keepdim=True))
            shares = [(1 - self.beta2) * self.beta2**age for age in range(len(self.squares))]
            mean = sum(share * square for share, square in zip(shares, reversed(self.squares), strict=True)) / sum(shares)
            update = update / (mean * max(rows, cols)).sqrt()
        if self.norm is not None:
            moved = self.weight - lr * self.norm * update / min(rows, cols) ** 0.5
            self.weight = moved / moved.norm() * self.norm
            return
        self.weight -= lr * max(1, rows / cols) ** 0.5 * update


class AdamWReference:
    """AdamW of one parameter (arXiv 1711.05101)."""

    def __init__(self, weight: Tensor):
        self.weight = weight.detach().double().clone()
        self.first, self.second, self.steps = torch.zeros_like(self.weight), torch.zeros_like(self.weight), 0

    def step(self, gradient: Tensor, lr: float, weight_decay: float) -> None:
        """One update."""
        g, self.steps = gradient.double(), self.steps + 1
        self.first = 0.8 * self.first + 0.2 * g
        self.second = 0.95 * self.second + 0.05 * g * g
        corrected = (self.second / (1 - 0.95**self.steps)).sqrt() + 1e-10
        self.weight -= lr * (weight_decay * self.weight + self.first / (1 - 0.8**self.steps) / corrected)


class Reference:
    """All parameters of a model, with the gradients that `gradient` makes."""

    def __init__(self, model: GPT, settings: OptimizerSettings):
        self.settings, self.width = settings, model.config.hidden_size
        self.start = {name: p.detach().double().clone() for name, p in model.named_parameters()}
        s = settings
        self.rules = {
            name: MuonReference(p, s.muon_beta2, s.muon_hold_norm) if "layers" in name else AdamWReference(p)
            for name, p in self.start.items()
        }

    def step(self, step: int, num_iterations: int) -> float:
        """One update of everything; returns the scale of the matrices' learning rate."""
        s = self.settings
        scale, aside = (min(1.0, (num_iterations - step) / round(ratio * num_iterations)) for ratio in (s.warmdown_ratio, s.adamw_warmdown))
        for_steps, for_width = ((num_iterations / 3250) ** -0.28, (self.width / 768) ** -0.37) if s.scale_lr else (1.0, 1.0)
        for name, rule in self.rules.items():
            g = gradient(name, rule.weight, step)
            if isinstance(rule, MuonReference):
                rule.step(g, s.matrix_lr * for_steps * for_width * scale, 0.85 + 0.1 * step / 300)
            else:
                lr = s.embedding_lr if "embed" in name else s.unembedding_lr
                rule.step(g, lr * for_steps * (self.width / 768) ** -0.5 * aside, s.weight_decay)
        return scale

    def errors(self, weights: dict[str, Tensor]) -> dict[str, float]:
        """For each parameter how far the sum of its updates is from what it should be, relative to it."""
        return {
            name: relative_error(weights[name].detach().double() - self.start[name], rule.weight - self.start[name])
            for name, rule in self.rules.items()
        }


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """The norm of the difference, as a share of the norm."""
    return float((found - wanted).norm() / wanted.norm())
