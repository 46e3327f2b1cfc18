"""The gradients of reinforcement learning and of preference learning, against float64 autograd on the plain formulas."""

import json
import math
from pathlib import Path

import pytest
import torch

from nanochat.data.conversation_file import PreferenceFile
from nanochat.engine.engine import Answer
from nanochat.engine.sample import Sampling
from nanochat.model.config import GPTConfig
from nanochat.model.gpt import GPT
from nanochat.model.init import init_weights
from nanochat.parallel.ranks import Ranks
from nanochat.tokenizer.conversation import Renderer
from nanochat.tokenizer.tokenizer import Tokenizer
from nanochat.train.preferences import Pairs, Preferences
from nanochat.train.rollouts import Rollout, group_advantages, pass_at_k
from tests.processes import run_ranks

TOKENIZER = Tokenizer.from_ranks({bytes([byte]): byte for byte in range(256)})


def model_of(seed: int) -> GPT:
    model = GPT(GPTConfig.from_depth(1, TOKENIZER.vocab_size, 64))
    init_weights(model, seed, std_of=lambda name, parameter: 1.0 if "embed" in name else 0.1)
    return model


def log_probability(model: GPT, prompt: list[int], said: list[int]) -> torch.Tensor:
    """Of what was said after the prompt, (said,), by the plain formula; differentiable."""
    ids = torch.tensor([[*prompt, *said]])
    logits = model(ids[:, :-1]).log_softmax(dim=-1)[0]
    return logits[torch.arange(len(prompt) - 1, len(prompt) + len(said) - 1), torch.tensor(said)]


def gradient(model: GPT, loss: torch.Tensor) -> torch.Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def test_a_rollout_learns_what_the_model_said_and_nothing_else() -> None:
    model = model_of(0)
    prompt, said, end = [5, 6, 7], [10, 11, 12, 13], TOKENIZER.special_id("<|assistant_end|>")
    made = Answer(prompt, Sampling(), 8, frozenset({end}), None, ids=[*said], sampled=[True, True, False, True], finish="stop", end=end)
    rollout = Rollout(prompt, made, 1.0, advantage=0.7)
    ids, targets, weights = rollout.row(16, TOKENIZER.bos_id)
    assert len(ids) == len(targets) == len(weights) == 16
    assert [target for target in targets if target >= 0] == [10, 11, 13, end]
    loss = model(torch.tensor([ids]), torch.tensor([targets]), weights=torch.tensor([weights]))
    each = log_probability(model, prompt, [*said, end])
    expected = -0.7 * (each[0] + each[1] + each[3] + each[4])
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    assert torch.allclose(gradient(model, loss), gradient(model, expected), atol=1e-5)


def test_advantages_are_against_the_group() -> None:
    assert group_advantages([1.0, 0.0, 0.0, 1.0]) == [0.5, -0.5, -0.5, 0.5]
    assert group_advantages([1.0, 1.0]) == [0.0, 0.0]


def test_pass_at_k_is_the_chance_of_a_draw_without_replacement() -> None:
    for n, correct, k in ((5, 2, 3), (16, 1, 4), (4, 0, 2), (4, 4, 1), (6, 5, 2)):
        assert pass_at_k(n, correct, k) == pytest.approx(1 - math.comb(n - correct, k) / math.comb(n, k))


class _Learner:
    """As much of a learner as the pairs look at."""

    def __init__(self, model: GPT, step: int):
        self.model, self._step = model, step

    def micro_batch_size(self) -> int:
        return 2

    def step(self) -> int:
        return self._step


def _batch(ranks: Ranks, directory: str) -> tuple[list[float], torch.Tensor, dict[str, float], torch.Tensor]:
    from nanochat.data.loader import Split

    reference, policy = model_of(0), model_of(1)
    file = PreferenceFile(Path(directory) / "pairs.jsonl")
    preferences = Preferences.of(file, Renderer(TOKENIZER), 63)
    pairs = Pairs(preferences, 0.3, 2, 0, ranks, Path(directory) / "reference.npy")
    pairs._reference(_Learner(reference, 0))  # type: ignore[arg-type]
    batch = next(pairs.batches(_Learner(policy, 1), Split(0, 1, 4, 1), 0))  # type: ignore[arg-type]
    loss = policy(batch.ids, batch.targets, weights=batch.weights) / batch.divisor
    ours = gradient(policy, loss)

    terms = []
    for number in (pairs._pair(0), pairs._pair(1)):
        ratios = []
        for conversation in file[number]:
            whole = Renderer(TOKENIZER)(conversation)
            prompt = Renderer(TOKENIZER).prompt({"messages": conversation["messages"][:-1]})
            said = whole.ids[len(prompt) :]
            ratios.append(log_probability(policy, prompt, said).sum() - log_probability(reference, prompt, said).sum().detach())
        terms.append(-torch.nn.functional.logsigmoid(0.3 * (ratios[0] - ratios[1])))
    expected = torch.stack(terms).mean()
    return [float(expected)], gradient(policy, expected), pairs.figures, ours


def test_the_gradient_of_preferences_is_dpos(tmp_path: Path) -> None:
    rows = [{"prompt": "a?", "chosen": "yes", "rejected": "no way"}, {"prompt": "b?", "chosen": "sure, b", "rejected": "?"}]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ((loss,), expected, figures, ours) = run_ranks(1, _batch, str(tmp_path))[0]
    assert figures["loss"] == pytest.approx(loss, rel=1e-5)
    assert float((ours - expected).norm() / expected.norm()) < 1e-4
