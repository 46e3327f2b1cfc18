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
    weight_decay: float = 0.0
    """Weight decay of embedding and head (AdamW)."""
    init_lr_frac: float = 1.0
    """Share of all learning rates that is used; later stages go on more gently."""
    warmup_ratio: float = 0.0
    """Share of the run over which learning rates rise from zero."""
    warmdown_ratio: float = 0.2
    """Share of the run over which learning rates fall at its end."""
    final_lr_frac: float = 0.0
    """What learning rates fall to, as a share of their peak."""
