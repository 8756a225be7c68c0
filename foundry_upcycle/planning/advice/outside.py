"""How far outside what was measured a prediction lies."""

from dataclasses import dataclass
from typing import Mapping, Sequence

from foundry_upcycle.planning.advice.laws import Point

__all__ = ['Outside', 'beyond', 'budget_outside', 'model_outside']

# Tokens and parameters of the data are rounded to two or three digits.
_TOLERANCE = 1.03


@dataclass(frozen=True)
class Outside:
    """A quantity of a prediction that no run of the data had.

    Args:
        what: The quantity.
        value: In the prediction.
        low: The least in the data.
        high: The most in the data.
    """

    what: str
    value: float
    low: float
    high: float

    @property
    def factor(self) -> float:
        """How many times too large or too small."""
        return max(self.value / self.high, self.low / self.value)

    def __str__(self) -> str:
        if self.value > self.high:
            end = f'above the most in the data, {self.high:.3g}'
        else:
            end = f'below the least in the data, {self.low:.3g}'
        return f'{self.what}: {self.value:.3g} is {self.factor:.3g} times {end}'


def beyond(what: str, value: float, data: Sequence[float]) -> list[Outside]:
    """The quantity, if it lies outside the data; else nothing."""
    found = Outside(what, value, min(data), max(data))
    return [found] if found.factor > _TOLERANCE else []


def model_outside(
    points: Mapping[str, Sequence[Point]],
    n_params: float,
    pretraining_tokens: float,
) -> list[Outside]:
    """What of a dense model lies outside the data.

    Args:
        points: Arm -> the runs that its law was fitted to, of the study whose
            scale the prediction is on.
        n_params: N.
        pretraining_tokens: D1.
    """
    every = [point for of_arm in points.values() for point in of_arm]
    return [
        *beyond('parameters', n_params, [p.n_params for p in every]),
        *beyond(
            'tokens of pretraining',
            pretraining_tokens,
            [p.pretraining_tokens for p in every],
        ),
        *beyond(
            'tokens of pretraining a parameter',
            pretraining_tokens / n_params,
            [p.pretraining_tokens / p.n_params for p in every],
        ),
    ]


def budget_outside(
    points: Mapping[str, Sequence[Point]],
    fraction: float,
    tokens: Mapping[str, float],
) -> list[Outside]:
    """What of a second phase lies outside the data.

    Args:
        points: As of ``model_outside``.
        fraction: Its FLOPs over those of pretraining.
        tokens: Arm -> D2.
    """
    every = [point for of_arm in points.values() for point in of_arm]
    fractions = [point.fraction for point in every]
    found = beyond('fraction of pretraining FLOPs', fraction, fractions)
    for arm, of_arm in points.items():
        data = [point.tokens for point in of_arm]
        found += beyond(f'tokens of {arm}', tokens[arm], data)
    return found
