"""Tokens a second that the loader delivers on one core.

python -m scripts.bench_loader
python -m scripts.bench_loader --max_seq_len=2048 --seconds=10
"""

from nanochat.common.cli import command
from nanochat.data.loader_bench import LoaderBenchSettings, bench_loader

if __name__ == "__main__":
    command(LoaderBenchSettings, bench_loader, __doc__)
