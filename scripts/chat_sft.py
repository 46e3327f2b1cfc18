"""Supervised fine-tuning, on one process or through torchrun on several GPUs.

python -m scripts.chat_sft --conversations=mine.jsonl
python -m scripts.chat_sft --weights=GSM8K=2,SpellingBee=0.5
torchrun --standalone --nproc_per_node=8 -m scripts.chat_sft
"""

from nanochat.common.cli import command
from nanochat.train.chat_settings import SftSettings


def main(settings: SftSettings) -> None:
    """Check what can be checked at once, then train."""
    settings.check()
    from nanochat.train.chat import train_chat

    train_chat(settings, "sft", usual=("mid", "base"))


if __name__ == "__main__":
    command(SftSettings, main, __doc__)
