"""Intervals of 95 % for accuracies, weighted sums of them, and differences.

One accuracy has Wilson's. Its bootstrap would be quantiles of Binomial(n, p),
often too narrow near 0 and 1: of a true rate of 0.065 and n = 50 they cover
0.875, Wilson's 0.958. And they know no spread at 0: with Wilson's there and the
bootstrap elsewhere the upper end would fall, from 0.071 to 0.060, as the right
ones of 50 rise from 0 to 1.

Sums of several accuracies, and differences, have a percentile bootstrap over
examples. The number of right ones among n drawn with replacement, of which a
share p is right, is Binomial(n, p): it is drawn instead of the examples, and
needs no more than n and p. Two models that were asked the same examples are
resampled in pairs: drawn are the numbers that only the one, only the other, and
both or neither got right (multinomial).

Where no example is right (or all are), resampling knows no other outcome and
shows no spread. There Wilson's interval is added in quadrature to the other
parts' spread (method of variance estimates recovery; Zou and Donner, 2008). The
same holds for examples that only one of two models got right: where there are
none, Wilson says how many there may be.

A change relative to a baseline has its interval from three of these: the
model's, the baseline's and the difference's, which says how far the two vary
together (``relative_interval``).

Intervals leave out what other few-shot examples or prompts and another training
run would change.

Shapes: P parts, R replicates.
"""

import math
import zlib
from dataclasses import dataclass
from typing import Optional, Sequence

import numpy as np

from foundry_upcycle.gauntlet.results import Part

__all__ = [
    'Draws',
    'Ends',
    'Estimate',
    'N_REPLICATES',
    'ROUNDING',
    'binomial_interval',
    'draw',
    'draw_difference',
    'generator',
    'interval',
    'relative_interval',
]

N_REPLICATES = 10_000
# Low and high.
Ends = tuple[float, float]

# Ends of intervals nearer to 0 are 0, but for rounding.
ROUNDING = 1e-12

_QUANTILES = (0.025, 0.975)
# Quantile of the normal distribution for intervals of 95 %.
_Z = 1.96


@dataclass(frozen=True)
class Estimate:
    """A figure and its interval.

    Args:
        value: What was measured.
        interval: Of 95 %. None where a number of examples is not known.
    """

    value: float
    interval: Optional[Ends]


def binomial_interval(accuracy: float, n: int) -> Ends:
    """Wilson's interval of 95 % for an accuracy measured on ``n`` examples."""
    center = (accuracy + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    spread = math.sqrt(accuracy * (1 - accuracy) / n + _Z**2 / (4 * n**2))
    half = _Z * spread / (1 + _Z**2 / n)
    # Of 0 and 1 the formula's ends are those, but for rounding.
    low = max(0.0, min(center - half, accuracy))
    return low, min(1.0, max(center + half, accuracy))


@dataclass(frozen=True)
class Draws:
    """How a rate, or a difference of two, varies.

    Args:
        deviations_R: From what was measured, in each replicate.
        below: How much lower it may be for reasons that no replicate shows.
        above: How much higher.
        paired: Whether it is of two models on the same examples.
        alone: How far from what was measured the ends of its own interval are,
            low and high, where that is not of the replicates.
    """

    deviations_R: np.ndarray
    below: float
    above: float
    paired: bool = False
    alone: Optional[Ends] = None


def interval(
    value: float,
    weights_P: np.ndarray,
    draws: Sequence[Optional[Draws]],
) -> Optional[Ends]:
    """Interval of a weighted sum of parts.

    Args:
        value: The sum that was measured.
        weights_P: Weight of each part, none negative.
        draws: Of each part.

    Returns:
        Low and high; None where a part with a weight has no draws.
    """
    weighted = [(float(weight), part)
                for weight, part in zip(weights_P, draws, strict=True)
                if weight]
    if len(weighted) == 1:
        weight, part = weighted[0]
        if part is not None and part.alone is not None:
            low, high = part.alone
            return value + weight * low, value + weight * high
    deviations_R = np.zeros(1)
    below = above = 0.0
    for weight, part in weighted:
        if part is None:
            return None
        deviations_R = deviations_R + weight * part.deviations_R
        below = math.hypot(below, weight * part.below)
        above = math.hypot(above, weight * part.above)
    low, high = np.quantile(deviations_R, _QUANTILES)
    return value - math.hypot(low, below), value + math.hypot(high, above)


def relative_interval(
    model: Estimate,
    base: Estimate,
    difference: Optional[Ends],
    spread: float = 0.0,
) -> Optional[Ends]:
    """Interval of (model - base) / base, both of which are uncertain.

    Fieller's: a ratio r is in it where the interval of model - r * base
    includes 0. How far the two vary together follows from the intervals of each
    and of their difference, which is the same with r = 1 (method of variance
    estimates recovery, for ratios). So it excludes 0 just where that of the
    difference does.

    Args:
        model: What was measured.
        base: The same of what it is relative to.
        difference: Interval of model - base.
        spread: Half of an interval of the model's alone, for what these leave
            out.

    Returns:
        Low and high. None where one of them has no interval, or the base may be
        0: a ratio may then be anything.
    """
    if model.interval is None or base.interval is None or difference is None:
        return None
    halves = [
        (
            abs(model.interval[side] - model.value),
            # A ratio is low where its base is high.
            abs(base.interval[1 - side] - base.value),
            abs(difference[side] - model.value + base.value),
        ) for side in (0, 1)
    ]
    if base.value <= max(of_base for _, of_base, _ in halves):
        return None
    low, high = (
        _ratio_end(model.value, base.value, *of_side, spread)
        for of_side in halves
    )
    return low[0] - 1, high[1] - 1


def _ratio_end(
    value: float,
    base: float,
    half: float,
    base_half: float,
    half_apart: float,
    spread: float,
) -> Ends:
    """Both r whose value - r * base is as far from 0 as it varies.

    Args:
        value: Of the model.
        base: Of the base.
        half: How far the model's varies.
        base_half: How far the base varies.
        half_apart: How far their difference varies.
        spread: How far the model's varies beside that.
    """
    most = half * base_half
    shared = (half**2 + base_half**2 - half_apart**2) / 2
    shared = min(max(shared, -most), most)
    # (value - r base)^2 = half^2 + spread^2 - 2 r shared + r^2 base_half^2
    a = base**2 - base_half**2
    b = value * base - shared
    c = value**2 - half**2 - spread**2
    root = math.sqrt(max(b**2 - a * c, 0.0))  # Rounding.
    return (b - root) / a, (b + root) / a


def generator(seed: int, label: str) -> np.random.Generator:
    """Of one part: it is resampled alike in every gauntlet."""
    return np.random.default_rng([seed, zlib.crc32(label.encode())])


def draw(
    part: Part,
    n_replicates: int,
    rng: np.random.Generator,
) -> Optional[Draws]:
    """Resamples a part; None where its number of examples is not known."""
    if part.n is None:
        return None
    shares_R = rng.binomial(part.n, part.accuracy, n_replicates) / part.n
    low, high = binomial_interval(part.accuracy, part.n)
    return Draws(
        shares_R - part.accuracy,
        *_unseen(part.accuracy, part.n),
        alone=(low - part.accuracy, high - part.accuracy),
    )


def draw_difference(
    part: Part,
    base: Part,
    n_replicates: int,
    rng: np.random.Generator,
) -> Optional[Draws]:
    """Resamples by how much a part's accuracy exceeds another model's.

    Returns:
        None where a number of examples is not known.
    """
    right, base_right = part.correct, base.correct
    if right is not None and base_right is not None:
        if len(right) == len(base_right):
            return _draw_paired(right, base_right, n_replicates, rng)
    own = draw(part, n_replicates, rng)
    other = draw(base, n_replicates, rng)
    if own is None or other is None:
        return None
    return Draws(
        own.deviations_R - other.deviations_R,
        math.hypot(own.below, other.above),
        math.hypot(own.above, other.below),
    )


def _draw_paired(
    right: np.ndarray,
    base_right: np.ndarray,
    n_replicates: int,
    rng: np.random.Generator,
) -> Draws:
    """The difference of the shares that only the one and only the other has."""
    n = len(right)
    n_gained = int((right & ~base_right).sum())
    n_lost = int((base_right & ~right).sum())
    counts_R3 = rng.multinomial(
        n,
        np.array([n_gained, n_lost, n - n_gained - n_lost]) / n,
        n_replicates,
    )
    gains_below, gains_above = _unseen(n_gained / n, n)
    losses_below, losses_above = _unseen(n_lost / n, n)
    return Draws(
        (counts_R3[:, 0] - counts_R3[:, 1] - n_gained + n_lost) / n,
        math.hypot(gains_below, losses_above),
        math.hypot(gains_above, losses_below),
        paired=True,
    )


def _unseen(rate: float, n: int) -> Ends:
    """How far a rate may be below and above, where all replicates are alike."""
    low, high = binomial_interval(rate, n)
    return rate - low if rate == 1 else 0.0, high if rate == 0 else 0.0
