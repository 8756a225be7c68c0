import math

import pytest

from foundry_upcycle.errors import ConfigError
from foundry_upcycle.planning.isoflop import matched_steps, steps_for_budget


@pytest.mark.parametrize(
    'budget,n_steps,deviation',
    [
        (600.0, 10, 0.0),
        (620.0, 10, -20 / 620),  # 10.33 steps of 60
        (640.0, 11, 20 / 640),  # 10.67 steps
        (31.0, 1, 29 / 31),
    ],
)
def test_steps_for_budget(budget: float, n_steps: int, deviation: float):
    steps = steps_for_budget(budget, flops_per_token=6.0, tokens_per_batch=10)
    assert steps.n_steps == n_steps
    assert steps.deviation == pytest.approx(deviation)


def test_matched_steps():
    # 100 steps at 3 are 300, 75 steps at 4.
    assert matched_steps(100, 3.0, 4.0) == (75, 0.0)
    # 101 steps at 3 are 303, 75.75 steps at 4: 76 spend 304.
    n_steps, deviation = matched_steps(101, 3.0, 4.0)
    assert n_steps == 76
    assert deviation == pytest.approx(1 / 303)


def test_the_papers_430m_pair():
    # 17.5e9 tokens are 4172 steps of 1024 * 4096. The experts cost 1.3343
    # times as much: 3126.672 steps, 13.1e9 tokens (paper: 13).
    steps = matched_steps(4172, 3_108_255_744, 4_147_427_328)
    assert steps.n_steps == 3127
    assert steps.deviation == pytest.approx(0.328 / 3126.672, rel=0.01)


def test_refuses_a_budget_of_less_than_half_a_step():
    with pytest.raises(
            ConfigError,
            match=
            'budget_flops=29.0: .*half a step of 60 FLOPs.*raise the budget',
    ):
        steps_for_budget(29.0, flops_per_token=6.0, tokens_per_batch=10)


@pytest.mark.parametrize('budget', [0.0, -1.0, math.nan, math.inf])
def test_refuses_what_is_no_budget(budget: float):
    with pytest.raises(ConfigError, match='budget_flops=.*: it is no positive'):
        steps_for_budget(budget, flops_per_token=6.0, tokens_per_batch=10)


def test_refuses_to_match_nothing():
    with pytest.raises(ConfigError, match='budget_flops=3.0: .*half a step'):
        matched_steps(1, 3.0, 7.0)
