"""Fast decoding says what slow decoding says: compiled, in eight bits, replayed over fixed rows; and it proves itself before it is used."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nanochat.engine import decode
from nanochat.engine.cache import RowCache
from nanochat.engine.decode import Captured, DecodePass, Pieces, ReplayedPass
from nanochat.engine.engine import Answer, Engine
from nanochat.engine.linear import DecodingLinear, Int8Linear, for_decoding
from nanochat.engine.sample import Sampling
from nanochat.model.directory import load_model
from nanochat.model.gpt import GPT
from nanochat.parallel.compiling import compiler_missing
from nanochat.tokenizer.tokenizer import Tokenizer

CPU = torch.device("cpu")
GREEDY = Sampling(temperature=0)
needs_compiler = pytest.mark.skipif(bool(compiler_missing(CPU)), reason=f"cannot compile here: {compiler_missing(CPU)}")


def answers(engine: Engine, tokenizer: Tokenizer, tokens: int = 14) -> list[Answer]:
    texts = ("The ", "A class is", "If the value of the", "x")
    some = [
        engine.add([tokenizer.bos_id, *tokenizer.encode(text)], tokens, GREEDY, stops=frozenset(), tools=False)
        for text in texts[: engine.max_rows]
    ]
    engine.run()
    return some


@pytest.mark.parametrize("rows", [1, 2, 16, 40])
def test_layers_multiply_as_float64_does(rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    layer = nn.Linear(96, 64, bias=False)
    layer.weight.data = torch.randn(64, 96, generator=generator)
    layer.weight.data[5] = 0  # no row of zeros divides by zero
    x = torch.randn(rows, 1, 96, generator=generator)
    with torch.no_grad():
        wanted = (x.double() @ layer.weight.double().t()).float()
        assert torch.allclose(DecodingLinear(layer)(x), wanted, atol=1e-4)
        eight = Int8Linear(layer)
        rounded = (x.double() @ (eight.weight.double() * eight.scale.double()[:, None]).t()).float()
        assert torch.allclose(eight(x), rounded, atol=0.15, rtol=0.02)  # bf16 activations
        assert float((eight(x) - wanted).norm() / wanted.norm()) < 0.015
    assert eight.weight.dtype == torch.int8


@needs_compiler
def test_compiled_passes_give_the_tokens_of_plain_ones(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = load_model(trained, CPU)
    plain = [one.ids for one in answers(Engine(model, tokenizer, max_rows=4), tokenizer)]
    for_decoding(model)
    for rows in (1, 4):
        engine = Engine(model, tokenizer, max_rows=rows, compiled=True)
        engine.warm_up()
        assert [one.ids for one in answers(engine, tokenizer)] == plain[:rows]
        assert engine.cache.bytes == 0
    assert capsys.readouterr().err == ""  # nothing fell back


@needs_compiler
def test_eight_bits_say_nearly_the_same(trained: Path) -> None:
    model, tokenizer = load_model(trained, CPU)
    ids = torch.tensor([[tokenizer.bos_id, *tokenizer.encode("The value of the object is")]])
    with torch.no_grad():
        wanted = model(ids)
        got = for_decoding(model, int8=True)(ids)
    assert float((got - wanted).abs().max()) < 0.1 * float(wanted.abs().max())
    engine = Engine(model, tokenizer, max_rows=1, compiled=True)
    engine.warm_up()
    assert len(answers(engine, tokenizer)[0].ids) == 14


class Rerun(ReplayedPass):
    """Captures by keeping the buffers, and replays by running the pass on them again: all but CUDA's own part."""

    captures = 0

    def capture(self, ids: Tensor) -> Captured:
        buffer, positions = ids.clone(), torch.empty_like(ids)
        self._cache.stand_at(positions)
        logits = self._run(buffer).clone()
        parts, cache = self._cache._extending, self._cache
        self.captures += 1

        def replay() -> None:
            assert cache.layout == layout
            assert cache._positions is positions
            cache._extending, present = parts, cache._extending  # what is captured knows of no later rows
            logits.copy_(self._run(buffer))
            cache._extending = present

        layout = cache.layout
        return Captured(replay, buffer, positions, logits)


def fixed(model: GPT, tokenizer: Tokenizer, rows: int) -> tuple[Engine, Rerun]:
    engine = Engine(model, tokenizer, max_rows=rows)
    engine.cache = RowCache(model.config, CPU, fixed=True)
    passes = Rerun(DecodePass(model, engine.cache, compiled=False))
    engine._decode = passes
    return engine, passes


def test_replayed_passes_over_fixed_rows_give_the_same_tokens() -> None:
    from nanochat.model.config import GPTConfig
    from nanochat.model.init import init_weights

    tokenizer = Tokenizer.from_ranks({bytes([byte]): byte for byte in range(256)})
    model = GPT(GPTConfig.from_depth(2, tokenizer.vocab_size, 1024))
    init_weights(model, 3, std_of=lambda *_: 0.3)
    model.eval().requires_grad_(False)
    prompts = [[1, 2, 3], [7] * 250, [5] * 505, [4, 4], [9] * 255, [3], [8] * 100]
    limits = [40, 20, 30, 5, 12, 60, 30]

    def run(engine: Engine) -> list[list[int]]:
        made = [engine.add(p, n, GREEDY, stops=frozenset(), tools=False) for p, n in zip(prompts, limits, strict=True)]
        engine.run()
        return [one.ids for one in made]

    plain = run(Engine(model, tokenizer, max_rows=3))
    engine, passes = fixed(model, tokenizer, 3)
    assert run(engine) == plain
    captures = passes.captures
    assert captures > 3
    assert run(engine) == plain  # places are kept, or come back where they were: nothing need be captured twice for long
    assert len(passes._captured) <= decode.GRAPHS
    assert all(bucket.places <= 2 for bucket in engine.cache.buckets)


def test_what_does_not_prove_itself_is_not_used(trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = load_model(trained, CPU)
    plain = [one.ids for one in answers(Engine(model, tokenizer, max_rows=2), tokenizer)]

    def broken(*_: Any) -> Tensor:
        raise RuntimeError("no compiler today\nmore")

    for last, words in ((lambda *args: decode._last(*args) + 1, "1 apart"), (broken, "no compiler today")):
        monkeypatch.setattr(Pieces, "compiled", classmethod(lambda cls, last=last: cls(last=last)))
        engine = Engine(model, tokenizer, max_rows=2, compiled=True)
        assert [one.ids for one in answers(engine, tokenizer)] == plain
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1

    engine, passes = fixed(model, tokenizer, 2)
    monkeypatch.setattr(passes, "capture", broken)
    assert [one.ids for one in answers(engine, tokenizer)] == plain
    assert "without CUDA graphs" in capsys.readouterr().err
