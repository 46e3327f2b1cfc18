"""How long training waits for a checkpoint.

python -m scripts.bench_checkpoint
python -m scripts.bench_checkpoint --depth=4 --vocab_size=4096   # small
"""

from nanochat.common.cli import command
from nanochat.train.checkpoint_bench import CheckpointBenchSettings, bench_checkpoint

if __name__ == "__main__":
    command(CheckpointBenchSettings, bench_checkpoint, __doc__)
