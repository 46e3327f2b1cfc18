"""Tokens a second that the loader delivers on one core: `python -m scripts.bench_loader`."""

from nanochat.common.cli import command
from nanochat.data.loader_bench import LoaderBenchSettings, bench_loader

if __name__ == "__main__":
    command(LoaderBenchSettings, bench_loader)
