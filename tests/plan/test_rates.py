"""Learning rates by width and steps."""

import pytest

from nanochat.plan.rates import Rates

RATES = Rates(embedding=0.8, head=0.004, matrices=0.02)


def test_the_rates_are_those_of_width_768_and_3250_steps() -> None:
    assert RATES.by_width_and_steps(768, 3250) == RATES.by_width(768) == RATES


def test_the_plain_rule_goes_by_width_and_for_adamw_alone() -> None:
    assert RATES.by_width(3072) == Rates(0.4, 0.002, 0.02)


def test_longer_runs_and_wider_models_learn_more_slowly() -> None:
    longer, wider = RATES.by_width_and_steps(768, 32500), RATES.by_width_and_steps(7680, 3250)
    assert (longer.embedding / 0.8, longer.head / 0.004, longer.matrices / 0.02) == pytest.approx([10**-0.28] * 3)
    assert (wider.embedding / 0.8, wider.head / 0.004, wider.matrices / 0.02) == pytest.approx([10**-0.5, 10**-0.5, 10**-0.37])
