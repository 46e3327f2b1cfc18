"""How fast the training step is, beside a straightforward float32 eager loop of the same model and batch."""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.common.console import say
from nanochat.model.config import GPTConfig
from nanochat.model.gpt import GPT
from nanochat.model.loss import softcap
from nanochat.optim.build import Optimizers
from nanochat.optim.newton_schulz import orthogonalize
from nanochat.optim.settings import OptimizerSettings
from nanochat.parallel.compiling import compile_model
from nanochat.parallel.precision import apply_precision, resolve_precision
from nanochat.train.bench_settings import BenchTrainSettings
from nanochat.train.trainer import peak_memory_gib

MOMENTUM, MUON_LR, ADAM_LR = 0.95, 0.02, 0.004
Phases = tuple[float, float, float]  # seconds of forward, backward, optimizer


def random_model(settings: BenchTrainSettings, device: torch.device) -> GPT:
    """A model none of whose weights is zero: products with zeros run faster than real ones."""
    model = GPT(GPTConfig.from_depth(settings.depth, settings.vocab_size, settings.max_seq_len))
    model.init_weights(torch.Generator().manual_seed(0))
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    return model.to(device)


class Clock:
    """Seconds between ticks, with the GPU's work in them."""

    def __init__(self, device: torch.device):
        self._device, self._last = device, time.perf_counter()

    def tick(self) -> float:
        """Seconds since the last tick."""
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        passed, self._last = now - self._last, now
        return passed


def our_step(
    settings: BenchTrainSettings, device: torch.device, precision: Literal["auto", "fp32", "bf16"]
) -> Callable[[Tensor, Tensor], Phases]:
    """The trainer's own step: compiled blocks, fused head and loss, batched Muon."""
    model = random_model(settings, device)
    dtype = resolve_precision(precision, device)
    optimizers = Optimizers(model, OptimizerSettings(), torch.bfloat16 if device.type == "cuda" else torch.float32)
    apply_precision(model, model.model.embed_tokens, dtype)
    compile_model(model, device)

    def step(ids: Tensor, targets: Tensor) -> Phases:
        clock = Clock(device)
        loss = model(ids, targets) / ids.numel()
        forward_s = clock.tick()
        loss.backward()
        backward_s = clock.tick()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizers.step(0, 100)
        model.zero_grad(set_to_none=True)
        return forward_s, backward_s, clock.tick()

    return step


def eager_step(settings: BenchTrainSettings, device: torch.device) -> Callable[[Tensor, Tensor], Phases]:
    """The same step as one would first write it: float32, eager, all logits at once, a matrix at a time."""
    model = random_model(settings, device)
    matrices = list(model.model.layers.parameters())
    momenta = [torch.zeros_like(p) for p in matrices]
    adamw = torch.optim.AdamW([model.model.embed_tokens.weight, model.lm_head.weight], lr=ADAM_LR, betas=(0.8, 0.95), eps=1e-10)

    def step(ids: Tensor, targets: Tensor) -> Phases:
        clock = Clock(device)
        logits = softcap(F.linear(model.model(ids), model.lm_head.weight), model.config.logit_softcap)
        loss = F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1))
        forward_s = clock.tick()
        loss.backward()
        backward_s = clock.tick()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
        with torch.no_grad():
            for p, momentum in zip(matrices, momenta, strict=True):
                assert p.grad is not None
                momentum.lerp_(p.grad, 1 - MOMENTUM)
                update = orthogonalize(p.grad.lerp(momentum, MOMENTUM)[None], torch.float32)[0]
                p.sub_(update, alpha=MUON_LR * max(1.0, p.size(0) / p.size(1)) ** 0.5)
        model.zero_grad(set_to_none=True)
        return forward_s, backward_s, clock.tick()

    return step


@dataclass(frozen=True)
class Timing:
    """What one loop took."""

    phases: list[Phases]
    first_step_s: float

    def summary(self, tokens: int) -> dict[str, float]:
        """Medians over the steps."""
        forward_s, backward_s, optimizer_s = (statistics.median(times) for times in zip(*self.phases, strict=True))
        step_s = statistics.median(sum(phases) for phases in self.phases)
        return {
            "tok_per_s": tokens / step_s,
            "step_s": step_s,
            "forward_s": forward_s,
            "backward_s": backward_s,
            "optimizer_s": optimizer_s,
            "first_step_s": self.first_step_s,
        }


def bench_train(settings: BenchTrainSettings) -> None:
    """Time both loops in turn, so that what else the machine does meets both alike, and print the figures."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(0, settings.vocab_size, (settings.device_batch_size, settings.max_seq_len + 1), generator=generator).to(device)
    ids, targets = rows[:, :-1].contiguous(), rows[:, 1:].contiguous()
    steps = {"ours": our_step(settings, device, settings.precision)} | (
        {"eager": eager_step(settings, device)} if settings.baseline else {}
    )
    first, phases = {}, {name: [] for name in steps}  # type: dict[str, float], dict[str, list[Phases]]
    for name, step in steps.items():
        first[name] = sum(step(ids, targets))
        step(ids, targets)
    for _ in range(settings.num_iterations):
        for name, step in steps.items():
            phases[name].append(step(ids, targets))
    tokens = ids.numel()
    result = Timing(phases["ours"], first["ours"]).summary(tokens)
    result["peak_memory_gib"] = peak_memory_gib(device)
    if settings.baseline:
        result["eager_tok_per_s"] = Timing(phases["eager"], first["eager"]).summary(tokens)["tok_per_s"]
        result["ratio"] = result["tok_per_s"] / result["eager_tok_per_s"]
    if settings.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        say(f"{name:>18}  {value:,.3f}" if value < 100 else f"{name:>18}  {value:,.0f}")
