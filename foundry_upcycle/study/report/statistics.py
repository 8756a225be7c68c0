"""Intervals over seeds, from few of them: the spread is pooled over points.

A study has two or three seeds a point. Student's t of one point with two has a
quantile of 12.7: too wide to say anything. But a study has many points, and the
spread between seeds is about the same at all of them, so it is estimated from
all points of one arm together. With x_ps the value of seed s at point p, n_p
seeds there, and m_p their mean:

    dof = sum_p (n_p - 1)
    variance = sum_p sum_s (x_ps - m_p)^2 / dof
    interval of m_p = m_p +- t(0.975, dof) sqrt(variance / n_p)

Assumed: seeds move the value by as much at every point of the arm (same
variance, any mean), normally distributed, and independently from one point to
another. The last is not exact, as a seed's runs of several lengths share the
order of their data: the truth is then as of fewer degrees of freedom, and the
interval a little too narrow.

Differences between arms are differences of runs with the same seed, which see
their data in the same order; the same formula is applied to them.
"""

import math
from dataclasses import dataclass
from typing import Iterable, Optional, Sequence

from scipy.special import stdtrit

__all__ = ['Spread', 'pool_spread']

_LEVEL = 0.975


@dataclass(frozen=True)
class Spread:
    """How far apart seeds are.

    Args:
        variance: Between seeds at one point, in the value's unit squared.
        dof: Degrees of freedom that it was estimated with.
    """

    variance: float
    dof: int

    def interval(self, values: Sequence[float]) -> tuple[float, float]:
        """Of 95 % for the mean of a point's seeds.

        Args:
            values: Of each seed; one is enough, as the spread is known.
        """
        mean = sum(values) / len(values)
        # Student's t, as scipy.stats.t.ppf, which takes longer to import.
        quantile = float(stdtrit(self.dof, _LEVEL))
        half = quantile * math.sqrt(self.variance / len(values))
        return mean - half, mean + half


def pool_spread(points: Iterable[Sequence[float]]) -> Optional[Spread]:
    """Estimates the spread between seeds.

    Args:
        points: The values of the seeds at each point of one arm.

    Returns:
        None where no point has two seeds.
    """
    squares, dof = 0.0, 0
    for values in points:
        if len(values) > 1:
            mean = sum(values) / len(values)
            squares += sum((value - mean)**2 for value in values)
            dof += len(values) - 1
    return Spread(squares / dof, dof) if dof else None
