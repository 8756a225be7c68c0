"""The most tokens a second that a server serves, and by how much they drop.

There are two measures of it:

- The plateau of saturated rates: where more requests are offered than are
  answered, throughput does not rise any further. A run's is the mean of its
  steady throughput at saturated rates: those where more than half of the runs
  are, as a single one may be marked by chance below the maximum. A point with
  few requests for the size of its batch says little of the plateau: of a
  simulated server of 8 slots, at 1.1 times what it can serve, throughput over
  24 requests is 4 % too low, with a standard deviation of 7 %; over 48 it is
  3 % too low, with 3 %; at 1.5 times and above it is right within 1 %. So a
  point counts if it has at least 6 requests for each of the most answers that
  were under way at once in it.
- The unbounded rate, where all requests come at once.

All that is compared is compared by one of them: by the plateau if all of it has
that, else by the unbounded rate if all of it has that, else by the one that more
of it has; what lacks that one is not compared. Runs are paired either way. At
the unbounded rate a pair has the same prompts; on plateaus only where both
models saturate at the same rates, as each rate has prompts of its own.
"""

from dataclasses import dataclass
from typing import Iterator, Mapping, Optional, Sequence

import numpy as np

from benchmarks.inference.analysis.steady import most_under_way
from benchmarks.inference.report.estimates import Estimate, drop_of, mean_of
from benchmarks.inference.report.records import Arm, Point
from benchmarks.inference.report.summary import DENSE, Summary

__all__ = [
    'KINDS',
    'PLATEAU',
    'PLATEAU_BATCHES',
    'UNBOUNDED',
    'Maximum',
    'common_kind',
    'find_maxima',
    'highest_seen',
    'maximum_runs',
    'too_short',
]

PLATEAU, UNBOUNDED = 'saturated rates', 'unbounded rate'
KINDS = (PLATEAU, UNBOUNDED)
# Requests of a point of the plateau, for each answer under way at once.
PLATEAU_BATCHES = 6


@dataclass(frozen=True)
class Maximum:
    """Of what is served, at most.

    Args:
        kind: How it was measured, one of ``KINDS``.
        throughput: Input and output tokens a second.
        drop: Against the dense model, as a share of its throughput; None where
            that was not measured, or of the dense model itself.
        beside: Throughput by the other kind, if measured.
    """

    kind: str
    throughput: Estimate
    drop: Optional[Estimate]
    beside: Optional[Estimate]

    @property
    def disagreement(self) -> Optional[float]:
        """By which share the other kind is higher, or lower than 0."""
        if self.beside is None:
            return None
        return self.beside.value / self.throughput.value - 1


def maximum_runs(
    summary: Summary,
    size: str,
    arm: Arm,
    kind: str,
) -> Mapping[int, float]:
    """Run -> tokens a second, of runs that have it."""
    if kind == UNBOUNDED:
        return summary.values(size, arm, None, lambda m: m.throughput)
    found: dict[int, list[float]] = {}
    for point in _saturated(summary, size, arm):
        if point.measured and _is_long(point):
            found.setdefault(point.run, []).append(point.measured.throughput)
    return {run: sum(of) / len(of) for run, of in sorted(found.items())}


def too_short(summary: Summary, size: str, arm: Arm) -> list[Point]:
    """Points of saturated rates that have too few requests for the plateau."""
    return [p for p in _saturated(summary, size, arm) if not _is_long(p)]


def _saturated(summary: Summary, size: str, arm: Arm) -> Iterator[Point]:
    """Points of the rates at which more than half of the runs are saturated."""
    for rate in summary.rates(size, arm):
        points = summary.runs(size, arm, rate).values()
        marked = [
            point.measured.saturated for point in points if point.measured
        ]
        if 2 * sum(marked) > len(marked):
            yield from points


def _is_long(point: Point) -> bool:
    """Whether it has enough requests for its batch."""
    requests = point.requests
    if requests is None:
        return False
    first = np.add(requests.start, requests.ttft)
    batch = most_under_way(first, requests.end)
    return len(requests.start) >= PLATEAU_BATCHES * batch


def common_kind(
    summary: Summary,
    size: str,
    arms: Sequence[Arm],
) -> Optional[str]:
    """By which kind to compare: the one that most of them have.

    Returns:
        Of equals the plateau, so that what all have comes first; None where no
        arm has any.
    """
    counts = {
        kind: sum(bool(maximum_runs(summary, size, a, kind))
                  for a in arms)
        for kind in KINDS
    }
    best = max(KINDS, key=lambda kind: counts[kind])
    return best if counts[best] else None


def find_maxima(summary: Summary, size: str) -> Mapping[Arm, Maximum]:
    """Of what is served without variants, all by one kind.

    Returns:
        Without those that have none of that kind.
    """
    arms = summary.arms(size)
    kind = common_kind(summary, size, arms)
    if kind is None:
        return {}
    other = KINDS[1 - KINDS.index(kind)]
    dense = maximum_runs(summary, size, DENSE, kind)
    maxima = {}
    for arm in arms:
        runs = maximum_runs(summary, size, arm, kind)
        throughput = mean_of(list(runs.values()))
        if throughput is not None:
            beside = maximum_runs(summary, size, arm, other)
            maxima[arm] = Maximum(
                kind,
                throughput,
                None if arm == DENSE else drop_of(dense, runs),
                mean_of(list(beside.values())),
            )
    return maxima


def highest_seen(summary: Summary, size: str, arm: Arm) -> Optional[float]:
    """The most tokens a second that it kept up with, or served by any kind.

    A maximum is no less.
    """
    means = [
        *(
            summary.mean(size, arm, rate, lambda m: m.throughput)
            for rate in summary.keeping_up(size, [arm])
        ),
        *(
            mean_of(list(maximum_runs(summary, size, arm, kind).values()))
            for kind in KINDS
        ),
    ]
    return max((mean.value for mean in means if mean), default=None)
