"""Means, drops and gaps closed, each with its interval of 95 % over runs."""

from dataclasses import dataclass
from typing import Mapping, Optional, Sequence

from benchmarks.inference.analysis.intervals import mean_interval, paired_drop

__all__ = ['Estimate', 'closed_of', 'drop_of', 'mean_of']

# Of the bootstrap; any will do, as long as it stays.
_SEED = 0


@dataclass(frozen=True)
class Estimate:
    """What runs come to.

    Args:
        value: In the unit of what was measured.
        interval: Of 95 % over runs; None where one run has none.
        n_runs: How many there are.
    """

    value: float
    interval: Optional[tuple[float, float]]
    n_runs: int


def mean_of(values: Sequence[float]) -> Optional[Estimate]:
    """Mean over runs, by Student's t; None where there is no run."""
    if not values:
        return None
    if len(values) == 1:
        return Estimate(float(values[0]), None, 1)
    mean, low, high = mean_interval(values)
    return Estimate(mean, (low, high), len(values))


def drop_of(
    dense: Mapping[int, float],
    moe: Mapping[int, float],
) -> Optional[Estimate]:
    """By which share a mixture is slower: 1 - moe / dense.

    Args:
        dense: Run -> tokens a second.
        moe: Likewise. Only runs that both have are used, as pairs: they were
            measured one after the other. Prompts are the same only where both
            are of the same rates.

    Returns:
        None where they share no run.
    """
    runs = sorted(set(dense) & set(moe))
    if not runs:
        return None
    pairs = [dense[run] for run in runs], [moe[run] for run in runs]
    if len(runs) == 1:
        return Estimate(1 - pairs[1][0] / pairs[0][0], None, 1)
    drop, low, high = paired_drop(*pairs, _SEED)
    return Estimate(drop, (low, high), len(runs))


def closed_of(
    variant: Mapping[int, float],
    base: Mapping[int, float],
    dense: Mapping[int, float],
    more_is_better: bool,
) -> Optional[Estimate]:
    """How much of the gap to the dense model a variant closes.

    c = (variant - base) / (dense - base), of the means over the runs that all
    three have: 0 is none of it, 1 all, less than 0 a wider gap. The interval is
    Student's t of the ratio, linearised: of run r, with g the mean gap,
    ((variant_r - base_r) - c (dense_r - base_r)) / g. It leaves out that g is
    in the denominator, so it is for gaps that are wide against their error.

    Args:
        variant: Run -> throughput, or latency, of the mixture's variant.
        base: Of the mixture without it.
        dense: Of the dense model without it.
        more_is_better: Of throughput, not of latency.

    Returns:
        None where no run has all three, or there is no gap to close, as the
        dense model is not ahead. Without an interval where the gap is not told
        apart from none.
    """
    runs = sorted(set(variant) & set(base) & set(dense))
    if not runs:
        return None
    gained = [variant[run] - base[run] for run in runs]
    gaps = [dense[run] - base[run] for run in runs]
    gap = sum(gaps) / len(runs)
    if (gap if more_is_better else -gap) <= 0:
        return None
    closed = sum(gained) / sum(gaps)
    if len(runs) == 1 or not _is_apart(gaps):
        return Estimate(closed, None, len(runs))
    _, low, high = mean_interval([(a - closed * b) / gap
                                  for a, b in zip(gained, gaps)])
    return Estimate(closed, (closed + low, closed + high), len(runs))


def _is_apart(values: Sequence[float]) -> bool:
    """Whether the interval of the mean leaves out 0."""
    _, low, high = mean_interval(values)
    return low > 0 or high < 0
