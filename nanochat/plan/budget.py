"""Hours and dollars of a run, and what a budget of either buys."""

from collections.abc import Callable
from dataclasses import dataclass

from nanochat.common.errors import UserError
from nanochat.plan import sizes
from nanochat.plan.choose import StepPlan

DEEPEST = 128
EVAL_EVERY = 250  # steps between evaluations on held-out text, unless base_train is told otherwise
EVAL_TOKENS = 20 * 524_288
FORWARD_SHARE = 1 / 3  # of a token's training that reading it takes


@dataclass(frozen=True)
class Run:
    """So many steps of a plan."""

    plan: StepPlan
    """How each step is run."""
    steps: int
    """How many."""
    usd_per_gpu_hour: float
    """Price of one GPU; 0 where it is not known."""

    @property
    def tokens(self) -> int:
        """Tokens of all steps."""
        return self.steps * self.plan.job.total_batch_size

    @property
    def tokens_per_parameter(self) -> float:
        """Tokens for each parameter of the model."""
        return self.tokens / self.plan.job.shape.parameters

    @property
    def hours(self) -> float:
        """Hours of training with its evaluations on held-out text; compiling and what waits for checkpoints come on top."""
        return self.tokens / self.plan.tok_per_s / 3600 * (1 + evaluation_share(self.plan.job.total_batch_size))

    @property
    def usd(self) -> float | None:
        """US dollars for all GPUs; None where no price is known."""
        return self.hours * self.plan.job.world_size * self.usd_per_gpu_hour if self.usd_per_gpu_hour else None


def evaluation_share(total_batch_size: int, eval_every: int = EVAL_EVERY, eval_tokens: int = EVAL_TOKENS) -> float:
    """Time that evaluations take, for each unit of time in steps; -1 for `eval_every` is never."""
    return FORWARD_SHARE * eval_tokens / (eval_every * total_batch_size) if eval_every > 0 else 0.0


def steps_within(plan: StepPlan, hours: float, usd: float, usd_per_gpu_hour: float, evaluations: float | None = None) -> int:
    """Steps that fit in so many hours and dollars; a limit that is not positive is off. May be 0.

    evaluations: their share of time as `evaluation_share` gives it; default that of base_train's settings.

    Raises UserError where both are off, for dollars without a price, and on a CPU, whose speed is not known.
    """
    if not plan.job.on_gpu:
        raise UserError("a limit of hours or dollars needs a GPU: the speed of CPUs is not known to the planner; give --num_iterations")
    limits = [hours] if hours > 0 else []
    if usd > 0:
        if usd_per_gpu_hour <= 0:
            raise UserError(f"a limit of ${usd:g} needs a price, and none is known for {plan.job.gpu.name}; give --usd_per_gpu_hour")
        limits.append(usd / (usd_per_gpu_hour * plan.job.world_size))
    if not limits:
        raise UserError("neither hours nor dollars are given")
    share = evaluation_share(plan.job.total_batch_size) if evaluations is None else evaluations
    return int(min(limits) * 3600 / (plan.time.total * (1 + share)))


def deepest(run_at: Callable[[int], Run], ratio: float) -> int:
    """The largest even depth whose run is of at least `ratio` tokens per parameter, and fits; 0 when not even depth 2 is.

    run_at: the run that a budget buys at a depth. Deeper models get fewer tokens for more parameters.
    """

    def enough(depth: int) -> bool:
        run = run_at(depth)
        return run.plan.fits and run.tokens_per_parameter >= ratio

    low, high = 0, DEEPEST // 2
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if enough(2 * middle) else (low, middle - 1)
    return 2 * low if low else 0


def neighbours(depth: int) -> list[int]:
    """A depth and the even ones beside it."""
    return [each for each in (depth - 2, depth, depth + 2) if each >= 2 and sizes.divides_evenly(each)]
