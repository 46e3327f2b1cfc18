"""Tokens per second from text to token shards, against tiktoken.

python -m scripts.bench_tokenize
python -m scripts.bench_tokenize --data=python --num_shards=2 --json
"""

from nanochat.common.cli import command
from nanochat.data.tokenize_bench import TokenizeBench, bench

if __name__ == "__main__":
    command(TokenizeBench, bench, __doc__)
