"""Train a base model: `python -m scripts.base_train --depth=4`, or through torchrun on several GPUs."""

from nanochat.common.cli import command
from nanochat.train.settings import BaseTrainSettings


def main(settings: BaseTrainSettings) -> None:
    """Check what can be checked at once, then train."""
    settings.check()
    from nanochat.train.base import train_base

    train_base(settings)


if __name__ == "__main__":
    command(BaseTrainSettings, main)
