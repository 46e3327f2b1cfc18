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


POLYNOMIALS = {
    "quintic": [(3.4445, -4.7750, 2.0315)] * 5,
    "polar": [  # to the digits that matter
        (8.15655452, -22.48329293, 15.87876992),
        (4.04292994, -2.80891747, 0.50001785),
        (3.89166780, -2.77248415, 0.50606482),
        (3.28575366, -2.36812949, 0.46449024),
        (2.34654133, -1.70978283, 0.42323551),
    ],
}


def newton_schulz_float64(x: Tensor, polynomial: str) -> Tensor:
    """One matrix, five steps."""
    x = x.double()
    transposed = x.shape[0] > x.shape[1]
    x = x.T if transposed else x
    x = x / x.norm() / (1.02 if polynomial == "polar" else 1)
    for a, b, c in POLYNOMIALS[polynomial]:
        gram = x @ x.T
        x = a * x + b * gram @ x + c * gram @ gram @ x
    return x.T if transposed else x


class MuonReference:
    """Muon of one matrix."""

    def __init__(self, weight: Tensor, polynomial: str = "quintic", beta2: float = 0.0, hold_norm: bool = False):
        self.weight = weight.detach().double().clone()
        self.norm = self.weight.norm() if hold_norm else None
        self.first = torch.zeros_like(self.weight)
        self.polynomial, self.beta2, self.squares = polynomial, beta2, []  # type: ignore[var-annotated]

    def step(self, gradient: Tensor, lr: float, momentum: float, decay: float = 0.0) -> None:
        """One update."""
        g = gradient.double()
        self.first = momentum * self.first + (1 - momentum) * g
        rows, cols = g.shape
        update = newton_schulz_float64((1 - momentum) * g + momentum * self.first, self.polynomial)
        if self.beta2:
            self.squares.append(update.square().mean(dim=1, keepdim=True))
            shares = [(1 - self.beta2) * self.beta2**age for age in range(len(self.squares))]
            mean = sum(share * square for share, square in zip(shares, reversed(self.squares), strict=True)) / sum(shares)
            update = update / (mean * max(rows, cols)).sqrt()
        if self.norm is not None:
            moved = self.weight - lr * self.norm * update / min(rows, cols) ** 0.5
            self.weight = moved / moved.norm() * self.norm
            return
        agreeing = torch.where(self.weight.sign() * update.sign() > 0, self.weight, 0)
        self.weight -= lr * (max(1, rows / cols) ** 0.5 * update + decay * agreeing)


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
            name: MuonReference(p, s.muon_polynomial, s.muon_beta2, s.muon_hold_norm) if "layers" in name else AdamWReference(p)
            for name, p in self.start.items()
        }

    def step(self, step: int, num_iterations: int) -> float:
        """One update of everything; returns the scale of the learning rates."""
        s = self.settings
        scale = min(1.0, (num_iterations - step) / round(s.warmdown_ratio * num_iterations))
        for name, rule in self.rules.items():
            g = gradient(name, rule.weight, step)
            if isinstance(rule, MuonReference):
                rule.step(g, s.matrix_lr * scale, 0.85 + 0.1 * step / 300, s.matrix_weight_decay * (num_iterations - step) / num_iterations)
            else:
                lr = s.embedding_lr if "embed" in name else s.unembedding_lr
                rule.step(g, lr * (self.width / 768) ** -0.5 * scale, s.weight_decay)
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
