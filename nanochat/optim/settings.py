"""The settings of the optimizers."""

from dataclasses import dataclass


@dataclass(frozen=True)
class OptimizerSettings:
    """Learning rates and their schedule."""

    embedding_lr: float = 0.2
    """Learning rate of the embedding (AdamW), at width 768; scaled by (width / 768)^-0.5."""
    unembedding_lr: float = 0.004
    """Learning rate of the head (AdamW), at width 768; scaled by (width / 768)^-0.5."""
    matrix_lr: float = 0.02
    """Learning rate of the matrices inside blocks (Muon)."""
    scale_lr: bool = False
    """Take the three as those of width 768 and 3,250 steps, and scale them to this run's."""
    weight_decay: float = 0.0
    """Weight decay of embedding and head (AdamW)."""
    muon_beta2: float = 0.0
    """How slowly the mean square of a matrix's update is followed, row by row, to even it out; 0 for not at all."""
    muon_hold_norm: bool = False
    """Keep the norm of each matrix inside blocks as it is at the start; matrix_lr is then a share of it."""
    projection_std: float = 0.0
    """Standard deviation that the blocks' output projections begin with, as a share of their inputs^-0.5."""
    init_lr_frac: float = 1.0
    """Share of all learning rates that is used; later stages go on more gently."""
    warmup_ratio: float = 0.0
    """Share of the run over which learning rates rise from zero."""
    warmdown_ratio: float = 0.2
    """Share of the run over which learning rates fall at its end."""
    adamw_warmdown_ratio: float = -1.0
    """The same for embedding and head alone; -1 for that of the matrices."""
    final_lr_frac: float = 0.0
    """What learning rates fall to, as a share of their peak."""

    @property
    def adamw_warmdown(self) -> float:
        """Share of the run over which the rates of embedding and head fall."""
        return self.warmdown_ratio if self.adamw_warmdown_ratio < 0 else self.adamw_warmdown_ratio
