"""Measure the training step.

# one rank of eight of the 3B, on one GPU
python -m scripts.bench_train --depth=38 --world_size=8 --simulate \\
    --total_batch_size=786432
# on a CPU, beside a plain eager loop
python -m scripts.bench_train --depth=4 --vocab_size=4096 --max_seq_len=512 \\
    --device_batch_size=8 --baseline
"""

from nanochat.common.cli import command
from nanochat.train.bench_settings import BenchTrainSettings


def main(settings: BenchTrainSettings) -> None:
    """Check the request, then measure."""
    settings.check()
    from nanochat.train.bench import bench_train

    bench_train(settings)


if __name__ == "__main__":
    command(BenchTrainSettings, main, __doc__)
