"""The training step as one would first write it, to be beaten: float32, eager, all logits at once, a matrix at a time."""

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from nanochat.model.config import GPTConfig
from nanochat.model.gpt import GPT
from nanochat.model.init import init_weights, initial_std
from nanochat.model.loss import softcap
from nanochat.optim.newton_schulz import orthogonalize
from nanochat.train.bench_settings import BenchTrainSettings

MOMENTUM, MUON_LR, ADAM_LR = 0.95, 0.02, 0.004


def eager_step(settings: BenchTrainSettings, micro_batch_size: int, device: torch.device) -> Callable[[], float]:
    """A function that makes one step on random data and returns its seconds."""
    model = GPT(GPTConfig.from_depth(settings.depth, settings.vocab_size, settings.max_seq_len))
    init_weights(model, 0, std_of=lambda name, parameter: initial_std(name, parameter) or 0.02)
    model.to(device)
    matrices = list(model.model.layers.parameters())
    momenta = [torch.zeros_like(p) for p in matrices]
    adamw = torch.optim.AdamW([model.model.embed_tokens.weight, model.lm_head.weight], lr=ADAM_LR, betas=(0.8, 0.95), eps=1e-10)
    generator = torch.Generator(device=device).manual_seed(1)
    rows = torch.randint(0, settings.vocab_size, (micro_batch_size, settings.max_seq_len + 1), generator=generator, device=device)

    def step() -> float:
        began = time.perf_counter()
        logits = softcap(F.linear(model.model(rows[:, :-1]), model.lm_head.weight), model.config.logit_softcap)
        loss = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
        with torch.no_grad():
            for p, momentum in zip(matrices, momenta, strict=True):
                assert p.grad is not None
                momentum.lerp_(p.grad, 1 - MOMENTUM)
                update = orthogonalize(p.grad.lerp(momentum, MOMENTUM)[None], torch.float32)[0]
                p.sub_(update, alpha=MUON_LR * max(1.0, p.size(0) / p.size(1)) ** 0.5)
        model.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    return step
