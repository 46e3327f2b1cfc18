"""Choosing tokens: as transformers filters them, and as the probabilities say."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from nanochat.common.errors import UserError
from nanochat.engine.sample import Sampling, choose, penalize

UNIFORM = [(number + 0.5) / 2000 for number in range(2000)]


def test_drawing_follows_the_probabilities() -> None:
    logits = torch.tensor([0.5, 0.2, 0.2, 0.1]).log().repeat(2000, 1)
    for sampling in (Sampling(), Sampling(top_k=4)):
        shares = torch.bincount(choose(logits, [sampling] * 2000, UNIFORM), minlength=4) / 2000
        assert torch.allclose(shares, torch.tensor([0.5, 0.2, 0.2, 0.1]), atol=0.001)
    assert choose(logits[:2], [Sampling()] * 2, [0.0, 1 - 2**-53]).tolist() == [0, 3]
    assert choose(logits[:2], [Sampling(top_k=3)] * 2, [0.0, 1 - 2**-53]).tolist()[0] == 0
    for temperature in (0, 5e-324, 1e-9):
        for top_k in (0, 3):
            assert choose(logits[:1], [Sampling(temperature=temperature, top_k=top_k)], [0.99]).tolist() == [0]


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    top_k=st.sampled_from([0, 1, 5, 40, 1000]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 0.01]),
    min_p=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    penalty=st.sampled_from([1.0, 1.3, 0.8]),
)
def test_what_can_be_drawn_and_how_often_is_what_transformers_says(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float, penalty: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(1, 60, generator=generator)
    seen = torch.randint(0, 60, (1, 12), generator=generator)
    sampling = Sampling(penalty, temperature, top_k, top_p, min_p)
    theirs = [RepetitionPenaltyLogitsProcessor(penalty), TemperatureLogitsWarper(temperature)]
    theirs += [TopKLogitsWarper(top_k)] if top_k else []
    theirs += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    theirs += [MinPLogitsWarper(min_p)] if min_p else []
    expected = LogitsProcessorList(theirs)(seen, logits.clone())[0].double().softmax(dim=-1)
    ours = penalize(logits, [penalty], seen.tolist()).expand(2000, -1)
    shares = torch.bincount(choose(ours, [sampling] * 2000, UNIFORM), minlength=60) / 2000
    assert float((shares - expected).abs().max()) < 0.002


def test_rows_are_filtered_each_in_its_own_way() -> None:
    logits = torch.randn(4, 60, generator=torch.Generator().manual_seed(0))
    how = [Sampling(temperature=0), Sampling(), Sampling(top_k=3), Sampling(top_p=0.4, temperature=0.7)]
    together = choose(logits, how, [0.3, 0.6, 0.9, 0.2]).tolist()
    for row, (one, uniform) in enumerate(zip(how, [0.3, 0.6, 0.9, 0.2], strict=True)):
        assert choose(logits[row : row + 1], [one], [uniform]).tolist() == [together[row]]


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 0}, {"min_p": 2}, {"repetition_penalty": 0}]
)
def test_what_means_nothing_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        Sampling(**wrong).check()  # type: ignore[arg-type]
    Sampling(1.1, 0.7, 50, 0.9, 0.05, 3).check()
