"""Measure how fast a model answers.

python -m scripts.bench_infer --depth=4 --baseline
python -m scripts.bench_infer --depth=12 --rows=16 --one_by_one --int8
"""

from nanochat.common.cli import command
from nanochat.serve.bench import BenchInferSettings, bench_infer


def main(settings: BenchInferSettings) -> None:
    """Check the request, then measure."""
    settings.check()
    bench_infer(settings)


if __name__ == "__main__":
    command(BenchInferSettings, main, __doc__)
