import math

import pytest

from foundry_upcycle.errors import ConfigError
from foundry_upcycle.planning.isoflop import steps_for_budget


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


def test_refuses_a_budget_of_less_than_half_a_step():
    with pytest.raises(
            ConfigError,
            match=
            'budget_flops=29.0: .*half a step of 60 FLOPs.*raise the budget',
    ):
        steps_for_budget(29.0, flops_per_token=6.0, tokens_per_batch=10)


@pytest.mark.parametrize('budget', [0.0, -1.0, math.nan, math.inf])
def test_refuses_what_is_no_budget(budget: float):
    with pytest.raises(ConfigError,
                       match='budget_flops=.*: it is not a positive'):
        steps_for_budget(budget, flops_per_token=6.0, tokens_per_batch=10)
