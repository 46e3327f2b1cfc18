"""Reinforcement learning on questions that can be checked: `python -m scripts.chat_rl`, or through torchrun on several GPUs."""

from nanochat.common.cli import command
from nanochat.train.rl_settings import RlSettings


def main(settings: RlSettings) -> None:
    """Check what can be checked at once, then train."""
    settings.check()
    from nanochat.train.rl import train_rl

    train_rl(settings)


if __name__ == "__main__":
    command(RlSettings, main)
