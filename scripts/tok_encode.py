"""Turn text shards into token shards.

python -m scripts.tok_encode
python -m scripts.tok_encode --data=python --tokenizer=python-4096
"""

from nanochat.common.cli import command
from nanochat.data.tokenize_shards import Tokenization, tokenize

if __name__ == "__main__":
    command(Tokenization, tokenize, __doc__)
