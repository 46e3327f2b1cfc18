"""The optimizers of a model: which parameter goes where, with which learning rate."""

import torch

from nanochat.model.gpt import GPT
from nanochat.optim.exchange import Exchange
from nanochat.optim.muon import Muon
from nanochat.optim.schedules import lr_scale, muon_momentum
from nanochat.optim.settings import OptimizerSettings
from nanochat.plan.rates import Rates


class Optimizers:
    """AdamW for embedding and head, Muon for every matrix inside the blocks, stepped as one.

    Made after the model is sharded, which replaces its parameters. `exchange` stands in for Muon's collectives where there
    are no other ranks to talk to. way: how Muon orthogonalises (see newton_schulz).
    """

    def __init__(
        self,
        model: GPT,
        settings: OptimizerSettings,
        newton_schulz_dtype: torch.dtype,
        exchange: Exchange | None = None,
        way: str = "plain",
    ):
        self.settings, self.width = settings, model.config.hidden_size
        matrices = list(model.model.layers.parameters())
        self.adamw = torch.optim.AdamW(
            [{"params": [model.model.embed_tokens.weight]}, {"params": [model.lm_head.weight]}],
            betas=(0.8, 0.95),
            eps=1e-10,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.muon = Muon(
            matrices,
            settings.matrix_lr,
            muon_momentum(0),
            newton_schulz_dtype,
            exchange,
            way,
            beta2=settings.muon_beta2,
            hold_norm=settings.muon_hold_norm,
        )
        self.all: tuple[torch.optim.Optimizer, ...] = (self.adamw, self.muon)

    def init_state(self) -> None:
        """Make all state as it is before the first step, so that a checkpoint can be read into it in place."""
        self.muon.init_state()
        for group in self.adamw.param_groups:
            for p in group["params"]:
                if not self.adamw.state[p]:  # as torch.optim.Adam makes it when fused
                    self.adamw.state[p]["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
                    self.adamw.state[p]["exp_avg"] = torch.zeros_like(p, requires_grad=False)
                    self.adamw.state[p]["exp_avg_sq"] = torch.zeros_like(p, requires_grad=False)

    def step(self, step: int, num_iterations: int) -> float:
        """Update every parameter as step number `step` (from 0) of `num_iterations`; returns the scale of the matrices' learning rate."""
        s = self.settings
        rates = Rates(s.embedding_lr, s.unembedding_lr, s.matrix_lr)
        rates = rates.by_width_and_steps(self.width, num_iterations) if s.scale_lr else rates.by_width(self.width)
        scale = lr_scale(step, num_iterations, s.warmup_ratio, s.warmdown_ratio, s.final_lr_frac)
        aside = lr_scale(step, num_iterations, s.warmup_ratio, s.adamw_warmdown, s.final_lr_frac)
        embedding, head = self.adamw.param_groups
        embedding["lr"], head["lr"] = rates.embedding * s.init_lr_frac * aside, rates.head * s.init_lr_frac * aside
        self.muon.param_groups[0]["lr"] = rates.matrices * s.init_lr_frac * scale
        self.muon.param_groups[0]["momentum"] = muon_momentum(step)
        for optimizer in self.all:
            optimizer.step()
        return scale
