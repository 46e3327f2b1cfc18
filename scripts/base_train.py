"""Train a base model, on one process or through torchrun on several GPUs.

# a small one, on a CPU
python -m scripts.base_train --depth=4 --max_seq_len=512 \\
    --device_batch_size=8 --total_batch_size=4096
# on eight GPUs
torchrun --standalone --nproc_per_node=8 -m scripts.base_train -- --depth=20
# what six hours of one GPU give
python -m scripts.base_train --depth=12 --target_hours=6 --keep_every=5000
"""

from nanochat.common.cli import command
from nanochat.train.settings import BaseTrainSettings


def main(settings: BaseTrainSettings) -> None:
    """Check what can be checked at once, then train."""
    settings.check()
    from nanochat.train.base import train_base

    train_base(settings)


if __name__ == "__main__":
    command(BaseTrainSettings, main, __doc__)
