"""A small tokenizer, trained once."""

import random

import pytest

from nanochat.tokenizer.samples import SAMPLES
from nanochat.tokenizer.tokenizer import Tokenizer
from nanochat.tokenizer.train import train_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    generator = random.Random(0)
    runs = [generator.choice("ab \n.1é語") * generator.randrange(2, 40) for _ in range(300)]
    return train_tokenizer(iter([*SAMPLES.values(), " ".join(runs), "<|bos|> <|user_start|> <|bos|>"]), 1200)
