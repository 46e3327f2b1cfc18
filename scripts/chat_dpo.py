"""Learn from preferences, on one process or through torchrun on several GPUs.

python -m scripts.chat_dpo --preferences=thumbs.jsonl
python -m scripts.chat_dpo --preferences=thumbs.jsonl --source=sft --beta=0.2
"""

from nanochat.common.cli import command
from nanochat.train.dpo_settings import DpoSettings


def main(settings: DpoSettings) -> None:
    """Check what can be checked at once, then train."""
    settings.check()
    from nanochat.train.dpo import train_dpo

    train_dpo(settings)


if __name__ == "__main__":
    command(DpoSettings, main, __doc__)
