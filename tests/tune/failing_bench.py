"""The benchmark, on a machine where attention by products fails in the real step though it was proven."""

import sys

from nanochat.common.cli import command
from nanochat.train.bench_settings import BenchTrainSettings
from scripts.bench_train import main

if __name__ == "__main__":
    if any("attention=products" in argument for argument in sys.argv):
        sys.exit("RuntimeError: CUDA error: an illegal memory access was encountered")
    command(BenchTrainSettings, main)
