"""Advice as lines of text."""

import math
from typing import Callable, Iterator, Mapping, Sequence

import numpy as np

from foundry_upcycle.columns import in_columns
from foundry_upcycle.planning.advice.advise import Advice, Budget
from foundry_upcycle.planning.advice.arms import ARMS
from foundry_upcycle.planning.advice.costs import Interval
from foundry_upcycle.planning.advice.laws import cross_validate

__all__ = ['advice_lines', 'count']


def advice_lines(advice: Advice) -> Iterator[str]:
    """What is predicted, what follows, and how far to trust it."""
    yield from _assumed(advice)
    yield ''
    yield from in_columns(_losses(advice))
    yield ''
    yield from in_columns(_costs(advice))
    yield ''
    yield from _totals(advice)
    yield _crossing(advice)
    yield from _decision(advice)
    yield ''
    yield from _trust(advice)


def _assumed(advice: Advice) -> Iterator[str]:
    model, speed = advice.model, advice.speed
    flops = model.flops['upcycled'] / model.flops['cpt']
    yield (
        f'dense model: {model.name}, {count(model.n_params)} parameters, '
        f'{count(model.tokens)} tokens seen '
        f'({model.tokens / model.n_params:.3g} a parameter)'
    )
    yield (
        f'mixture: {model.mixture}; a token takes {flops:.3f} times the dense '
        f"model's FLOPs ({model.flops_from})"
    )
    yield (
        f'serving: a token costs {_ends(speed.ratio, _ratio)} times the dense '
        f"model's, which serves {speed.dense_tokens_per_s:,.0f} a second "
        f'({speed.source})'
    )
    yield (
        f'losses: final training cross entropy in nats a token, on the scale '
        f'of {advice.study}; in brackets 95 %, of one run'
    )


def _losses(advice: Advice) -> list[list[str]]:
    head = [
        'budget',
        'FLOPs',
        *(f'{arm} tokens' for arm in ARMS),
        *(f'{arm} loss' for arm in ARMS),
        'lead of upcycled',
        '',
    ]
    return [
        head,
        *([
            f'{budget.fraction:g}',
            f'{budget.flops:.3g}',
            *(count(budget.tokens[arm]) for arm in ARMS),
            *(_ends(budget.losses[arm], _nats) for arm in ARMS),
            _ends(budget.lead, _lead),
            budget.verdict,
        ] for budget in advice.budgets),
    ]


def _costs(advice: Advice) -> list[list[str]]:
    head = [
        'budget',
        'training price',
        'cpt has the same loss at',
        'upcycling is cheaper if serving fewer tokens than',
    ]
    return [
        head,
        *([
            f'{budget.fraction:g}',
            count(budget.training_price),
            _fraction(budget),
            _ends(budget.served_below, _tokens),
        ] for budget in advice.budgets),
    ]


def _totals(advice: Advice) -> Iterator[str]:
    """Training and serving together, where it is known how much is served."""
    if advice.served_tokens is None:
        return
    rows = [[
        f'budget, {count(advice.served_tokens)} tokens served',
        *(f'{arm} in all' for arm in ARMS),
        'cpt in all for the same loss',
        'upcycling pays if a nat is worth more than',
    ]]
    for budget in advice.budgets:
        if budget.totals and budget.nat_price:
            same = budget.totals['cpt_same_loss']
            is_ahead = budget.lead.value > 0
            rows.append([
                f'{budget.fraction:g}',
                *(count(budget.totals[arm]) for arm in ARMS),
                _total(same) if is_ahead else '-',
                _ends(budget.nat_price, _price),
            ])
    yield from in_columns(rows)
    yield ''


def _crossing(advice: Advice) -> str:
    crossing = advice.crossing
    low, high = crossing.searched
    if crossing.kind == 'never':
        text = f'Upcycling is not ahead at {high:g} of the pretraining FLOPs'
    elif crossing.fraction is None:
        text = f'Upcycling is ahead at every budget from {low:g} on'
    else:
        flops = crossing.fraction * advice.model.pretraining_flops
        text = (
            f'Upcycling is ahead from {crossing.fraction:.2g} of the '
            f'pretraining FLOPs on ({flops:.2g} FLOPs)'
        )
    if crossing.told_apart is None:
        return f'{text}; told apart from no lead at 95 %: nowhere.'
    first, last = crossing.told_apart
    until = '' if last == high else f' to {last:.2g}'
    return f'{text}; told apart from no lead at 95 % from {first:.2g}{until}.'


def _decision(advice: Advice) -> Iterator[str]:
    budget = advice.budgets[-1]
    at = f'At {budget.fraction:g} of the pretraining FLOPs'
    if budget.lead.value <= 0:
        yield (
            f'{at} continue pretraining: its loss is predicted to be no '
            'higher, and it is cheaper to serve.'
        )
        return
    doubt = '' if budget.verdict == 'ahead' else (
        ', though its lead is not told apart from none,'
    )
    yield f'{at} upcycle{doubt} {_served(budget)}{_value(advice, budget)}'
    if budget.totals and advice.served_tokens is not None:
        longer, moe = (
            budget.totals[way] for way in ('cpt_same_loss', 'upcycled')
        )
        if math.isinf(longer):
            return  # There is no other way.
        way = 'upcycling' if moe < longer else 'continued pretraining'
        yield (
            f'Of {count(advice.served_tokens)} tokens served, {way} is the '
            f'cheaper way to that loss: upcycling costs {count(moe)} in all, '
            f'continued pretraining {count(longer)}.'
        )


def _served(budget: Budget) -> str:
    """Up to how many tokens; of no end there is nothing to say."""
    below = budget.served_below.value
    return '' if math.isinf(below) else (
        f'if you will serve fewer than {count(below)} tokens (with more, '
        'continued pretraining gets to the same loss at less cost in all), or, '
        'where training can cost no more, '
    )


def _value(advice: Advice, budget: Budget) -> str:
    if budget.nat_price is None or advice.served_tokens is None:
        return 'if its lead is worth what it costs more to serve (--served).'
    return (
        f'if you value a nat above {_price(budget.nat_price.value)} (serving '
        f'{count(advice.served_tokens)} tokens).'
    )


def _trust(advice: Advice) -> Iterator[str]:
    laws = advice.arms.laws
    rows = [['fit (root mean square error, nats)', *ARMS]]
    rows.append(['points', *(str(len(law.points)) for law in laws.values())])
    rows.append(['all of them', *(f'{law.rms:.4f}' for law in laws.values())])
    errors = {arm: cross_validate(law.points) for arm, law in laws.items()}
    rows.append([
        'each dense start left out in turn',
        *(_rms(list(of.values())) for of in errors.values()),
    ])
    starts = dict.fromkeys(start for of in errors.values() for start in of)
    rows += [[f'  {start}', *(_rms_of(of, start)
                              for of in errors.values())]
             for start in starts]
    yield from in_columns(rows)


def _rms_of(errors: Mapping[str, np.ndarray], start: str) -> str:
    return _rms([errors[start]] if start in errors else [])


def _rms(errors: Sequence[np.ndarray]) -> str:
    if not errors:
        return 'not told'
    return f'{math.sqrt(np.square(np.concatenate(errors)).mean()):.4f}'


def _fraction(budget: Budget) -> str:
    """Of a lead only: behind it, continued pretraining needs less."""
    if budget.lead.value <= 0:
        return '-'
    return _ends(budget.same_loss, _share)


def _ends(interval: Interval, form: Callable[[float], str]) -> str:
    value, low, high = map(
        form,
        (interval.value, interval.low, interval.high),
    )
    return f'{value} ({low} to {high})'


def _nats(value: float) -> str:
    return f'{value:.3f}'


def _lead(value: float) -> str:
    return f'{value:+.3f}'


def _ratio(value: float) -> str:
    return f'{value:.2f}'


def _share(value: float) -> str:
    return 'never' if math.isinf(value) else f'{value:.2g}'


def _tokens(value: float) -> str:
    return 'any number' if math.isinf(value) else count(value)


def _total(value: float) -> str:
    return 'never' if math.isinf(value) else count(value)


def _price(value: float) -> str:
    return 'no price' if math.isinf(value) else count(value)


def count(value: float) -> str:
    """Such as 43.6B."""
    for unit, name in ((1e12, 'T'), (1e9, 'B'), (1e6, 'M'), (1e3, 'k')):
        if value >= unit:
            digits = value / unit
            return f'{digits:.3g}{name}' if digits < 1e3 else f'{value:.3g}'
    return f'{value:.3g}'
