"""What a run's width and length make of its learning rates. DESIGN_3B_7B.md has the evidence."""

from dataclasses import dataclass

REFERENCE_WIDTH = 768  # of the runs that the rates were found in
REFERENCE_STEPS = 3250
ADAMW_BY_WIDTH = -0.5  # powers
MATRICES_BY_WIDTH = -0.37
ALL_BY_STEPS = -0.28


@dataclass(frozen=True)
class Rates:
    """Learning rates between warm-up and warm-down."""

    embedding: float
    head: float
    matrices: float

    def by_width(self, width: int) -> "Rates":
        """Those of AdamW for a hidden size, Muon's as it is: what the plain settings ask for."""
        factor = (width / REFERENCE_WIDTH) ** ADAMW_BY_WIDTH
        return Rates(self.embedding * factor, self.head * factor, self.matrices)

    def by_width_and_steps(self, width: int, steps: int) -> "Rates":
        """All of them for a hidden size and a number of steps."""
        factor, matrices = (steps / REFERENCE_STEPS) ** ALL_BY_STEPS, (width / REFERENCE_WIDTH) ** MATRICES_BY_WIDTH
        adamw = self.by_width(width)
        return Rates(adamw.embedding * factor, adamw.head * factor, self.matrices * factor * matrices)


HELD_NORM_RATES = Rates(embedding=0.9, head=0.0064, matrices=0.018)
"""Those to begin from with --muon_hold_norm and --scale_lr."""
