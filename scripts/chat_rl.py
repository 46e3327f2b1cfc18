"""Reinforcement learning on questions that can be checked, on one process or through torchrun.

python -m scripts.chat_rl --tasks=Arithmetic --num_iterations=10
torchrun --standalone --nproc_per_node=8 -m scripts.chat_rl
"""

from nanochat.common.cli import command
from nanochat.train.rl_settings import RlSettings


def main(settings: RlSettings) -> None:
    """Check what can be checked at once, then train."""
    settings.check()
    from nanochat.train.rl import train_rl

    train_rl(settings)


if __name__ == "__main__":
    command(RlSettings, main, __doc__)
