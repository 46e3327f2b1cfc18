"""The settings of the optimizers."""

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class OptimizerSettings:
    """Learning rates and their schedule."""

    GROUPS: ClassVar[dict[str, str]] = {
        "Learning rates": "embedding_lr unembedding_lr matrix_lr scale_lr init_lr_frac "
        "warmup_ratio warmdown_ratio adamw_warmdown_ratio final_lr_frac",
        "Optimizers": "weight_decay muon_beta2 muon_hold_norm projection_std",
    }

    embedding_lr: float = 0.2
    """Learning rate of the embedding (AdamW), at width 768; scaled by (width / 768)^-0.5."""
    unembedding_lr: float = 0.004
    """Learning rate of the head (AdamW), at width 768; scaled by (width / 768)^-0.5."""
    matrix_lr: float = 0.02
    """Learning rate of the matrices inside blocks (Muon)."""
    scale_lr: bool = False
    """Take these three as those of width 768 and 3,250 steps, and scale them to this run's width and steps."""
    weight_decay: float = 0.0
    """Weight decay of embedding and head (AdamW), as a share of the weight, times the learning rate, each step."""
    muon_beta2: float = 0.0
    """How slowly Muon follows the mean square of an update's rows, to even them out, as a share from 0 to less than 1; 0 for not at all."""
    muon_hold_norm: bool = False
    """Keep the norm of each matrix inside blocks as it is at the start; --matrix_lr is then a share of it. A new model wants
    --projection_std with it."""
    projection_std: float = 0.0
    """Standard deviation that a new model's output projections begin with, as a share of their inputs^-0.5; 0 for zeros."""
    init_lr_frac: float = 1.0
    """Share of all learning rates that is used, from 0 to 1; later stages go on more gently."""
    warmup_ratio: float = 0.0
    """Share of the run, from 0 to 1, over which learning rates rise from zero."""
    warmdown_ratio: float = 0.2
    """Share of the run, from 0 to 1, over which learning rates fall at its end."""
    adamw_warmdown_ratio: float = -1.0
    """The same for embedding and head alone; -1 for --warmdown_ratio."""
    final_lr_frac: float = 0.0
    """What learning rates fall to, as a share of their peak, from 0 to 1."""

    @property
    def adamw_warmdown(self) -> float:
        """Share of the run over which the rates of embedding and head fall."""
        return self.warmdown_ratio if self.adamw_warmdown_ratio < 0 else self.adamw_warmdown_ratio
