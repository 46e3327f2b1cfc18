"""How long training waits for a checkpoint: `python -m scripts.bench_checkpoint`."""

from nanochat.common.cli import command
from nanochat.train.checkpoint_bench import CheckpointBenchSettings, bench_checkpoint

if __name__ == "__main__":
    command(CheckpointBenchSettings, bench_checkpoint)
