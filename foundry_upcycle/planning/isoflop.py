"""From a FLOP budget to a number of training steps.

The study matches runs by FLOPs, not by tokens: a mixture of experts costs more
a token than its dense parent, so it gets fewer steps.
"""

import math
from typing import NamedTuple

from foundry_upcycle.errors import ConfigError

__all__ = ['Steps', 'steps_for_budget']


class Steps(NamedTuple):
    """A number of steps, and how far its FLOPs are from the budget.

    Args:
        n_steps: Optimizer steps.
        deviation: (FLOPs of ``n_steps`` - budget) / budget. At most half a step
            either way.
    """

    n_steps: int
    deviation: float


def steps_for_budget(
    budget_flops: float,
    flops_per_token: float,
    tokens_per_batch: int,
) -> Steps:
    """The whole number of steps whose FLOPs are nearest to a budget.

    Args:
        budget_flops: FLOPs to spend.
        flops_per_token: Training FLOPs of one token.
        tokens_per_batch: Tokens of one optimizer step, over all ranks.

    Raises:
        ConfigError: The budget is no positive number, or nearer to zero steps
            than to one.
    """
    if not 0 < budget_flops < math.inf:  # NaN is not, either.
        raise ConfigError(
            'budget_flops',
            budget_flops,
            'it is not a positive number of FLOPs.',
            'set it to the FLOPs to spend, such as 1e20.',
        )
    flops_per_step = flops_per_token * tokens_per_batch
    n_steps = round(budget_flops / flops_per_step)
    if n_steps < 1:
        raise ConfigError(
            'budget_flops',
            budget_flops,
            f'it is less than half a step of {flops_per_step:.4g} FLOPs.',
            'raise the budget, or lower the batch size or sequence length.',
        )
    return Steps(n_steps, n_steps * flops_per_step / budget_flops - 1)
