"""On a GPU: answers from replayed CUDA graphs are those of the plain pass, at any number of rows, in eight bits too."""

import pytest
import torch

from nanochat.engine.decode import ReplayedPass
from nanochat.engine.engine import Engine
from nanochat.engine.linear import for_decoding
from nanochat.engine.sample import Sampling
from nanochat.model.config import GPTConfig
from nanochat.model.gpt import GPT
from nanochat.model.init import init_weights
from nanochat.tokenizer.tokenizer import Tokenizer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
GREEDY = Sampling(temperature=0)


def answers(engine: Engine, tokens: int = 300) -> list[list[int]]:
    prompts = [[1, 2, 3], [7] * 250, [5] * 505, [4, 4], [9] * 255, [3]][: engine.max_rows]
    some = [engine.add(prompt, tokens, GREEDY, stops=frozenset(), tools=False) for prompt in prompts]
    engine.run()
    return [one.ids for one in some]


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("rows", [1, 6])
def test_graphs_give_the_tokens_of_the_plain_pass(rows: int, int8: bool, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = Tokenizer.from_ranks({bytes([byte]): byte for byte in range(256)})
    model = GPT(GPTConfig.from_depth(4, tokenizer.vocab_size, 1024))
    init_weights(model, 3, std_of=lambda *_: 0.2)
    for_decoding(model.cuda().eval().requires_grad_(False), int8)
    plain = answers(Engine(model, tokenizer, max_rows=rows))
    engine = Engine(model, tokenizer, max_rows=rows, compiled=True)
    engine.warm_up()
    assert answers(engine) == plain
    assert answers(engine) == plain
    assert isinstance(engine._decode, ReplayedPass)
    assert engine._decode._captured
    assert capsys.readouterr().err == ""  # nothing fell back
