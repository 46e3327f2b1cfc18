"""Measure the training step: `python -m scripts.bench_train --depth=38 --world_size=8 --simulate` on one GPU."""

from nanochat.common.cli import command
from nanochat.train.bench_settings import BenchTrainSettings


def main(settings: BenchTrainSettings) -> None:
    """Check the request, then measure."""
    settings.check()
    from nanochat.train.bench import bench_train

    bench_train(settings)


if __name__ == "__main__":
    command(BenchTrainSettings, main)
