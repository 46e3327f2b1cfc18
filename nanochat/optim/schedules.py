"""What changes with the step: the learning rates' common scale and Muon's momentum."""

MOMENTUM_START, MOMENTUM_END, MOMENTUM_STEPS = 0.85, 0.95, 300


def lr_scale(step: int, num_iterations: int, warmup_ratio: float, warmdown_ratio: float, final_lr_frac: float) -> float:
    """Factor on every learning rate at a step counted from 0: linear warm-up, constant, linear warm-down.

    The ratios are shares of the whole run; the warm-down ends at `final_lr_frac` after the last step.
    """
    warmup, warmdown = round(warmup_ratio * num_iterations), round(warmdown_ratio * num_iterations)
    if step < warmup:
        return (step + 1) / warmup
    if step < num_iterations - warmdown:
        return 1.0
    left = (num_iterations - step) / warmdown
    return left + (1 - left) * final_lr_frac


def muon_momentum(step: int) -> float:
    """Momentum at a step counted from 0: linear over the first 300 steps, then constant."""
    share = min(step / MOMENTUM_STEPS, 1.0)
    return (1 - share) * MOMENTUM_START + share * MOMENTUM_END
