"""Train a tokenizer.

python -m scripts.tok_train
python -m scripts.tok_train --data=python --vocab_size=4096
"""

from nanochat.common.cli import command
from nanochat.tokenizer.train import TokenizerTraining, make_tokenizer


def train(settings: TokenizerTraining) -> None:
    """Train on the training shards of the source; its validation shard is never read."""
    from nanochat.data.defaults import resolve_data
    from nanochat.data.text_shards import iter_texts, text_shards

    data = resolve_data(settings.data)
    make_tokenizer(settings, data, (texts for path in text_shards(data).train for texts in iter_texts(path)))


if __name__ == "__main__":
    command(TokenizerTraining, train, __doc__)
