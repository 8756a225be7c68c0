"""What repeated runs say of a mean, and of a drop.

Runs are few (3 or 5), so every interval is by Student's t: percentiles of a
bootstrap over so few runs are too narrow (over 3 runs they lie within the
runs' range, which has the true mean 3 times in 4).
"""

import math
from typing import Sequence

import numpy as np

__all__ = [
    'mean_interval',
    'paired_drop',
    'ratio_interval',
    'share_interval',
    't_quantile',
]

_RESAMPLES = 10_000
# Of the normal distribution, 97.5 % are below.
_Z = 1.959964


def t_quantile(probability: float, df: int) -> float:
    """Quantile of Student's t.

    By bisection of its distribution function, which is a finite sum for whole
    degrees of freedom (Abramowitz and Stegun, 26.7.3 and 26.7.4).

    Args:
        probability: From 0.5 to below 1.
        df: Degrees of freedom, from 1.
    """
    low, high = 0.0, 1.0
    while _t_cdf(high, df) < probability:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        if _t_cdf(middle, df) < probability:
            low = middle
        else:
            high = middle
    return high


def _t_cdf(t: float, df: int) -> float:
    """Probability that a t of ``df`` degrees is below ``t``, at least 0."""
    theta = math.atan(t / math.sqrt(df))
    cos2 = math.cos(theta)**2
    # Terms of the sums: each is the one before times cos^2 * (n - 1) / n.
    term, total = 1.0, 0.0
    for n in range(2 + df % 2, df + 1, 2):
        total += term
        term *= cos2 * (n - 1) / n
    if df % 2:
        within = 2 / math.pi * (theta + math.sin(2 * theta) / 2 * total)
    else:
        within = math.sin(theta) * total
    return 0.5 + within / 2


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and its 95 % interval: m -+ t(0.975, n - 1) s / sqrt(n).

    Assumes that runs are independent and their errors about normal.

    Args:
        values: One a run, of 2 runs or more.

    Returns:
        Mean, lower and upper end.
    """
    _require_runs(len(values))
    mean = float(np.mean(values))
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    half = t_quantile(0.975, len(values) - 1) * error
    return mean, mean - half, mean + half


def ratio_interval(
    parts: Sequence[float],
    wholes: Sequence[float],
) -> tuple[float, float, float]:
    """A ratio of two sums and its 95 % interval, such as a loss per token.

    By Student's t of the linearised ratio (Cochran, Sampling Techniques, 2.11):
    with r the ratio, the residuals a - r b add up to 0, and the error of r is
    sqrt(n / (n - 1) sum of their squares) / |sum of b|. It leaves out the error
    of the denominator's size, so it is for sums of b that are far from 0.

    Assumes that pairs are independent.

    Args:
        parts: One each of 2 documents or more.
        wholes: Likewise, in the same order; their sum is not 0.

    Returns:
        Ratio, lower and upper end.
    """
    n = len(parts)
    _require_runs(n)
    part_N, whole_N = np.asarray(parts, float), np.asarray(wholes, float)
    total = float(whole_N.sum())
    ratio = float(part_N.sum()) / total
    squares = float(np.square(part_N - ratio * whole_N).sum())
    error = math.sqrt(n / (n - 1) * squares) / abs(total)
    half = t_quantile(0.975, n - 1) * error
    return ratio, ratio - half, ratio + half


def share_interval(n_right: float, n: int) -> tuple[float, float, float]:
    """Share of n that are right, and its 95 % interval by Wilson's score.

    Unlike Student's t it stays between 0 and 1, and has a width where all are
    right, or none is.

    Args:
        n_right: How many are.
        n: Of how many, 1 or more.

    Returns:
        Share, lower and upper end.
    """
    share, weight = n_right / n, _Z**2 / n
    middle = (share + weight / 2) / (1 + weight)
    half = math.sqrt(weight * (share * (1 - share) + weight / 4)) / (1 + weight)
    return share, max(middle - half, 0.0), min(middle + half, 1.0)


def paired_drop(
    dense: Sequence[float],
    moe: Sequence[float],
    seed: int,
) -> tuple[float, float, float]:
    """By which share a mixture is below a dense model, with a 95 % interval.

    The drop is 1 - mean(moe) / mean(dense). Runs are drawn with replacement,
    both models' values of a run together, as they had the same arrivals and
    prompts at the same rate and what the pair shares cancels out. The bootstrap gives the
    standard error of log(mean(moe) / mean(dense)); times sqrt(n / (n - 1)),
    since a resample of n runs varies too little by that, and Student's
    t(0.975, n - 1), it is half the interval of the logarithm.

    Assumes that runs are independent and the logarithm's errors about normal.

    Args:
        dense: One positive value a run, of 2 runs or more.
        moe: Likewise, in the same order.
        seed: Of the draws.

    Returns:
        Drop, lower and upper end.
    """
    n = len(dense)
    _require_runs(n)
    if len(moe) != n:
        raise ValueError(f'{n} runs of dense, {len(moe)} of moe.')
    pairs_2R = np.array([dense, moe], dtype=float)
    if pairs_2R.min() <= 0:
        raise ValueError('values must be above 0.')
    draws = np.random.default_rng(seed).integers(n, size=(_RESAMPLES, n))
    drawn_2B = pairs_2R[:, draws].mean(axis=2)
    error = np.std(np.log(drawn_2B[1] / drawn_2B[0])) * math.sqrt(n / (n - 1))
    ratio = float(np.mean(moe) / np.mean(dense))
    factor = math.exp(t_quantile(0.975, n - 1) * float(error))
    return 1 - ratio, 1 - ratio * factor, 1 - ratio / factor


def _require_runs(n: int) -> None:
    if n < 2:
        raise ValueError(f'{n} runs have no interval.')
