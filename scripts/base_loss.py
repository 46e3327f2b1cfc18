"""Bits per byte of a finished base model, on training text and on held-out text.

python -m scripts.base_loss
python -m scripts.base_loss --model_tag=d4 --eval_tokens=1000000
"""

from nanochat.common.cli import command
from nanochat.evals.base_loss import BaseLossSettings, base_loss


def main(settings: BaseLossSettings) -> None:
    """Check the request, then evaluate."""
    settings.check()
    base_loss(settings)


if __name__ == "__main__":
    command(BaseLossSettings, main, __doc__)
