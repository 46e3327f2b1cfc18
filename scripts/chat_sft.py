"""Supervised fine-tuning: `python -m scripts.chat_sft`, or through torchrun on several GPUs."""

from nanochat.common.cli import command
from nanochat.train.chat_settings import SftSettings


def main(settings: SftSettings) -> None:
    """Check what can be checked at once, then train."""
    settings.check()
    from nanochat.train.chat import train_chat

    train_chat(settings, "sft", usual=("mid", "base"))


if __name__ == "__main__":
    command(SftSettings, main)
