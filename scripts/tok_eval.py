"""Bytes per token of a tokenizer by kind of text.

python -m scripts.tok_eval
python -m scripts.tok_eval --tokenizer=python-4096 --data=python
"""

from nanochat.common.cli import command
from nanochat.tokenizer.evaluate import TokenizerEvaluation, evaluate, first_bytes


def evaluate_on_data(settings: TokenizerEvaluation) -> None:
    """Evaluate on the samples and on the beginning of the source's first training shard and of its validation shard."""
    from nanochat.common.paths import tokenizer_dir
    from nanochat.data.defaults import resolve_data, resolve_tokenizer
    from nanochat.data.text_shards import iter_texts, text_shards

    directory = tokenizer_dir(resolve_tokenizer(settings.tokenizer))
    data = resolve_data(settings.data)
    shards = text_shards(data)
    kinds = {"training": shards.train[0], "validation": shards.val}
    evaluate(directory, {f"{data}, {kind}": first_bytes(iter_texts(path)) for kind, path in kinds.items()})


if __name__ == "__main__":
    command(TokenizerEvaluation, evaluate_on_data, __doc__)
