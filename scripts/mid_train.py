"""Midtraining, on one process or through torchrun on several GPUs.

python -m scripts.mid_train
python -m scripts.mid_train --tasks=Identity,Arithmetic --num_iterations=100
torchrun --standalone --nproc_per_node=8 -m scripts.mid_train
"""

from nanochat.common.cli import command
from nanochat.train.chat_settings import MidTrainSettings


def main(settings: MidTrainSettings) -> None:
    """Check what can be checked at once, then train."""
    settings.check()
    from nanochat.train.chat import train_chat

    train_chat(settings, "mid", usual=("base",))


if __name__ == "__main__":
    command(MidTrainSettings, main, __doc__)
