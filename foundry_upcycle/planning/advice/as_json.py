"""Advice as JSON."""

import math
from typing import Any, Optional

from foundry_upcycle.planning.advice.advise import Advice, Budget
from foundry_upcycle.planning.advice.arms import ARMS
from foundry_upcycle.planning.advice.costs import Interval
from foundry_upcycle.planning.advice.laws import Law, cross_validate
from foundry_upcycle.planning.advice.outside import Outside

__all__ = ['FORMAT', 'advice_json']

FORMAT = 'foundry_upcycle/advice/1'


def advice_json(advice: Advice) -> dict[str, Any]:
    """The same as the text says. What has no bound is null."""
    model, crossing, prices = advice.model, advice.crossing, advice.prices
    return {
        'format': FORMAT,
        'model': {
            'name': model.name,
            'params': model.n_params,
            'pretraining_tokens': model.tokens,
            'pretraining_flops': model.pretraining_flops,
            'training_flops_per_token': dict(model.flops),
            'flops_from': model.flops_from,
            'experts': model.mixture.n_experts,
            'top_k': model.mixture.top_k,
        },
        'losses_on_the_scale_of': advice.study,
        'laws': {
            arm: _law(law, advice.study)
            for arm, law in advice.arms.laws.items()
        },
        'correlation_of_residuals': advice.arms.correlation,
        'serving': {
            'source': advice.speed.source,
            'dense_tokens_per_s': advice.speed.dense_tokens_per_s,
            'cost_ratio': _interval(advice.speed.ratio),
            'served_tokens': advice.served_tokens,
        },
        'prices': vars(prices),
        'budgets': [_budget(budget) for budget in advice.budgets],
        'upcycling_is_ahead': {
            'kind': crossing.kind,
            'from_fraction': crossing.fraction,
            'possible_from_fraction': crossing.possible_from,
            'told_apart_fractions': crossing.told_apart,
            'searched_fractions': crossing.searched,
        },
        'outside': [_outside(each) for each in advice.outside],
    }


def _law(law: Law, study: str) -> dict[str, Any]:
    return {
        'parameters': law.as_printed(study),
        'points': len(law.points),
        'rms_error': law.rms,
        'residual_sd': law.fit.residual_sd,
        'errors_of_starts_left_out': {
            start: list(map(float, errors))
            for start, errors in cross_validate(law.points).items()
        },
    }


def _budget(budget: Budget) -> dict[str, Any]:
    price = budget.nat_price
    return {
        'fraction': budget.fraction,
        'flops': budget.flops,
        'training_price': _finite(budget.training_price),
        'tokens': dict(budget.tokens),
        'losses': {
            arm: _interval(budget.losses[arm])
            for arm in ARMS
        },
        'lead_of_upcycled': _interval(budget.lead),
        'verdict': budget.verdict,
        'cpt_fraction_for_same_loss': _interval(budget.same_loss),
        'cheaper_if_served_below': _interval(budget.served_below),
        'totals': budget.totals and {
            name: _finite(total)
            for name, total in budget.totals.items()
        },
        'nat_price': None if price is None else _interval(price),
        'outside': [_outside(each) for each in budget.outside],
    }


def _interval(interval: Interval) -> dict[str, Optional[float]]:
    return {name: _finite(value) for name, value in vars(interval).items()}


def _finite(value: float) -> Optional[float]:
    return value if math.isfinite(value) else None


def _outside(outside: Outside) -> dict[str, Any]:
    return {**vars(outside), 'factor': outside.factor}
