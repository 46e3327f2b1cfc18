"""The engine: whatever else is answered beside it, each answer is what it would be alone."""

from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat.engine import engine as engine_module
from nanochat.engine.batch import complete, generate_batch, turn_ends
from nanochat.engine.cache import RowCache
from nanochat.engine.engine import Answer, Engine
from nanochat.engine.sample import Sampling
from nanochat.model.config import GPTConfig
from nanochat.model.directory import load_model
from nanochat.model.gpt import GPT
from nanochat.model.init import init_weights
from nanochat.tokenizer.tokenizer import Tokenizer

GREEDY = Sampling(temperature=0)
Both = tuple[GPT, Tokenizer]


def made(context: int) -> Both:
    tokenizer = Tokenizer.from_ranks({bytes([byte]): byte for byte in range(256)})
    model = GPT(GPTConfig.from_depth(2, tokenizer.vocab_size, context))
    init_weights(model, 3, std_of=lambda name, parameter: 1.0 if "embed" in name else 0.15)
    return model.eval(), tokenizer


@pytest.fixture(scope="module")
def short() -> Both:
    return made(96)


@pytest.fixture(scope="module")
def long() -> Both:
    """With a context of several places' sizes: 256, 512, 700."""
    return made(700)


def alone(both: Both, prompt: list[int], tokens: int) -> list[int]:
    """Greedy, the whole anew for each token; no tools."""
    model, tokenizer = both
    ids = list(prompt)
    while len(ids) < min(len(prompt) + tokens, model.config.max_seq_len):
        with torch.no_grad():
            token = int(model(torch.tensor([ids]), logits_to_keep=1)[0, -1].argmax())
        if token in turn_ends(tokenizer):
            break
        ids.append(token)
    return ids[len(prompt) :]


PROMPTS = [[1, 2, 3], [200] * 40, [7], [int(byte) for byte in b"a longer prompt, of another length"], [9] * 95, [5] * 96]


def test_a_batch_of_ragged_prompts_gives_what_each_gives_alone(short: Both) -> None:
    answers = generate_batch(*short, PROMPTS, 30, temperature=0, seeds=range(len(PROMPTS)), tools=False)
    for prompt, one in zip(PROMPTS, answers, strict=True):
        assert one.ids == alone(short, prompt, 30)
        assert all(one.sampled)
    assert [len(one.ids) for one in answers][-2:] in ([1, 0], [0, 0])  # the end of the context
    assert answers[-1].finish == "length"


def test_answers_join_and_leave_at_any_step(long: Both) -> None:
    model, tokenizer = long
    engine = Engine(model, tokenizer, max_rows=3)
    prompts = [[1, 2, 3], [7] * 250, [5] * 505, [4, 4], [int(byte) for byte in b"yet another"], [9] * 255, [3]]
    expected = [alone(long, prompt, 12) for prompt in prompts]
    answers: list[Answer] = []
    steps = 0
    while engine.busy or len(answers) < len(prompts):
        if steps % 2 == 0 and len(answers) < len(prompts):
            answers.append(engine.add(prompts[len(answers)], 12, GREEDY, stops=turn_ends(tokenizer), tools=False))
        engine.step()
        assert engine.running <= 3
        steps += 1
    assert [one.ids for one in answers] == expected
    assert engine.cache.bytes == 0


def test_a_cancelled_answer_frees_its_place_and_disturbs_nobody(long: Both) -> None:
    model, tokenizer = long
    engine = Engine(model, tokenizer, max_rows=2)
    kept, given_up, waiting = (engine.add(prompt, 30, GREEDY, stops=frozenset(), tools=False) for prompt in ([1, 2], [7] * 300, [3]))
    for _ in range(4):
        engine.step()  # the first gives two tokens: one of the prompt's reading, one more
    assert not waiting.ids
    engine.cancel(given_up)
    engine.step()
    assert waiting.ids
    assert given_up.finish == "cancelled"
    engine.run()
    assert len(given_up.ids) == 5
    assert len(kept.ids) == len(waiting.ids) == 30
    engine.cancel(kept)
    assert kept.finish == "length"


def test_those_who_came_first_are_answered_first(short: Both) -> None:
    model, tokenizer = short
    engine = Engine(model, tokenizer, max_rows=2, max_held=60)
    answers = [engine.add([1, number], 8, GREEDY, stops=frozenset(), tools=False) for number in range(7)]
    long = engine.add([2] * 50, 40, GREEDY, stops=frozenset(), tools=False)  # more than may be held: by itself
    last = engine.add([3], 8, GREEDY, stops=frozenset(), tools=False)
    ended: list[Answer] = []
    while engine.busy:
        engine.step()
        ended += [one for one in (*answers, long, last) if one.finish and one not in ended]
    assert ended == [*answers, long, last]


def test_memory_follows_what_is_held() -> None:
    config = GPTConfig.from_depth(2, 300, 4096)
    cache = RowCache(config, torch.device("cpu"))
    model = GPT(config)

    def token_bytes(rows: int, length: int) -> int:
        return rows * length * 2 * config.num_layers * config.hidden_size * 4

    with torch.no_grad():
        cache.read([0, 1, 2], [5, 9, 1000])
        model(torch.zeros((3, 1000), dtype=torch.int64), cache=cache)
        assert cache.bytes == token_bytes(2, 256) + token_bytes(1, 1024)
        for _ in range(30):  # one row outgrows its place
            cache.extend(1)
            model(torch.zeros((3, 1), dtype=torch.int64), cache=cache)
        assert cache.bytes == token_bytes(2, 256) + token_bytes(1, 2048)
    cache.drop(2)
    assert cache.bytes == token_bytes(2, 256)
    cache.drop(0)
    cache.drop(1)
    assert cache.bytes == 0


@pytest.mark.parametrize("guesses", [1, 4])
def test_guessing_ahead_changes_nothing_but_the_number_of_passes(long: Both, guesses: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = long
    passes = [0]
    forward = torch.nn.Embedding.forward
    monkeypatch.setattr(torch.nn.Embedding, "forward", lambda self, ids: passes.__setitem__(0, passes[0] + 1) or forward(self, ids))
    for sampling in (GREEDY, Sampling(temperature=0.3, seed=5)):
        found = []
        for ahead in (0, guesses):
            passes[0] = 0
            engine = Engine(model, tokenizer, guesses=ahead)
            one = engine.add([65, 66, 67] * 20, 400, sampling, stops=frozenset(), tools=False)
            engine.run()
            found.append((one.ids, passes[0]))
        assert found[0][0] == found[1][0]
        assert found[0][1] == 400
        assert found[1][1] < 400


def test_transformers_generates_the_same(trained: Path) -> None:
    from transformers import AutoModelForCausalLM

    model, tokenizer = load_model(trained, torch.device("cpu"))
    theirs: Any = AutoModelForCausalLM.from_pretrained(trained, dtype=torch.float32)
    prompts = [[tokenizer.bos_id, *tokenizer.encode(text)] for text in ("The ", "A class is", "If the value")]
    answers = generate_batch(model, tokenizer, prompts, 12, temperature=0, seeds=[0, 1, 2])
    for prompt, one in zip(prompts, answers, strict=True):
        out = theirs.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)[0].tolist()[len(prompt) :]
        assert one.ids == out[: len(one.ids)]
        assert len(one.ids) == 12 or one.finished


def test_what_is_sampled_for_a_row_does_not_depend_on_its_neighbours(short: Both) -> None:
    together = generate_batch(*short, PROMPTS[:4], 25, temperature=1.0, top_k=50, seeds=[11, 12, 13, 14])
    for number in range(4):
        one = generate_batch(*short, [PROMPTS[number]], 25, temperature=1.0, top_k=50, seeds=[11 + number])
        assert one[0].ids == together[number].ids
    other = generate_batch(*short, PROMPTS[:4], 25, temperature=1.0, top_k=50, seeds=[21, 22, 23, 24])
    assert [one.ids for one in other] != [one.ids for one in together]


@pytest.mark.parametrize("others", [0, 2])
def test_a_tool_call_is_answered_in_its_row_and_nowhere_else(short: Both, others: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = short
    special = tokenizer.special_tokens
    script = [special["<|python_start|>"], *tokenizer.encode("6*7"), special["<|python_end|>"]]
    asked = PROMPTS[1]

    def scripted(logits: torch.Tensor, how: list[Sampling], uniform: list[float]) -> torch.Tensor:
        chosen = logits.argmax(dim=-1)
        for row, one in enumerate(how):
            if one.seed == 77 and steps[0] < len(script):
                chosen[row] = script[steps[0]]
                steps[0] += 1
        return chosen

    steps = [0]
    monkeypatch.setattr(engine_module, "choose", scripted)
    answers = generate_batch(model, tokenizer, [asked, *PROMPTS[2 : 2 + others]], 20, temperature=0, seeds=[77, 1, 2][: 1 + others])
    said = [*script, special["<|output_start|>"], *tokenizer.encode("42"), special["<|output_end|>"]]
    assert answers[0].ids[: len(said)] == said
    assert answers[0].sampled[: len(said)] == [True] * len(script) + [False] * 4
    assert answers[0].ids[len(said) :] == alone(short, [*asked, *said], 20 - len(said))
    assert [one.ids for one in answers[1:]] == [alone(short, prompt, 20) for prompt in PROMPTS[2 : 2 + others]]


def test_probabilities_come_with_the_tokens(short: Both) -> None:
    model, tokenizer = short
    engine = Engine(model, tokenizer)
    one, bare = (engine.add([1, 2, 3], 6, Sampling(seed=4), stops=frozenset(), tools=False, logprobs=n) for n in (3, -1))
    engine.run()
    assert bare.ids == one.ids
    assert bare.scores == []
    with torch.no_grad():
        logprobs = model(torch.tensor([[1, 2, 3, *one.ids]]))[0, 2:-1].log_softmax(dim=-1)
    for place, score in enumerate(one.scores):
        assert score
        assert score.logprob == pytest.approx(float(logprobs[place, one.ids[place]]), abs=1e-4)
        values, tokens = logprobs[place].topk(3)
        assert [token for token, _ in score.best] == tokens.tolist()
        assert [value for _, value in score.best] == pytest.approx(values.tolist(), abs=1e-4)


def test_a_text_is_completed_and_a_long_one_keeps_its_end(short: Both) -> None:
    model, tokenizer = short
    prompt = [tokenizer.bos_id, *tokenizer.encode("hello")]
    expected = alone(short, prompt, 20)
    assert complete(model, tokenizer, "hello", 20, GREEDY) == tokenizer.decode(expected)
    with torch.no_grad():
        one = int(model(torch.tensor([tokenizer.encode("x" * 95)]))[0, -1].argmax())
    assert complete(model, tokenizer, "x" * 500, 20, GREEDY) == (tokenizer.decode([one]) if one != tokenizer.bos_id else "")


def test_a_model_that_transformers_saved_is_opened(trained: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    theirs: Any = AutoModelForCausalLM.from_pretrained(trained, dtype=torch.float32)
    theirs.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(trained).save_pretrained(tmp_path)
    assert not (tmp_path / "ranks.tiktoken").exists()
    ours, same = load_model(trained, torch.device("cpu")), load_model(tmp_path, torch.device("cpu"))
    assert complete(*same, "The ", 8, GREEDY) == complete(*ours, "The ", 8, GREEDY)
