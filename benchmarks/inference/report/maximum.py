"""The most tokens a second that a server serves, and by how much they drop.

The maximum is the plateau of saturated points: where more requests are offered
than are answered, throughput does not rise any further. A run's is the mean of
its steady throughput at saturated rates: those where more than half of the runs
are, as a single one may be marked by chance below the maximum. The unbounded
rate, where all requests come at once, is a second measure of the same; a study
without saturated rates has it alone.
"""

from dataclasses import dataclass
from typing import Mapping, Optional, Sequence

from benchmarks.inference.report.estimates import Estimate, drop_of, mean_of
from benchmarks.inference.report.records import Arm
from benchmarks.inference.report.summary import DENSE, Summary

__all__ = [
    'KINDS',
    'PLATEAU',
    'UNBOUNDED',
    'Maximum',
    'common_kind',
    'find_maxima',
    'highest_seen',
    'maximum_runs',
]

PLATEAU, UNBOUNDED = 'saturated rates', 'unbounded rate'
KINDS = (PLATEAU, UNBOUNDED)


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
    for rate in summary.rates(size, arm):
        if _saturates(summary, size, arm, rate):
            values = summary.values(size, arm, rate, lambda m: m.throughput)
            for run, value in values.items():
                found.setdefault(run, []).append(value)
    return {run: sum(of) / len(of) for run, of in sorted(found.items())}


def _saturates(summary: Summary, size: str, arm: Arm, rate: float) -> bool:
    """Whether more than half of the runs at a rate are saturated."""
    runs = summary.runs(size, arm, rate).values()
    marked = [point.measured.saturated for point in runs if point.measured]
    return 2 * sum(marked) > len(marked)


def common_kind(
    summary: Summary,
    size: str,
    arms: Sequence[Arm],
) -> Optional[str]:
    """By which kind to compare: the one that most of them have.

    Returns:
        None where no arm has any.
    """
    counts = {
        kind: sum(bool(maximum_runs(summary, size, a, kind))
                  for a in arms)
        for kind in KINDS
    }
    # Of equals the first, the plateau.
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
                None if arm.is_dense else drop_of(dense, runs),
                mean_of(list(beside.values())),
            )
    return maxima


def highest_seen(summary: Summary, size: str, arm: Arm) -> Optional[float]:
    """The most tokens a second of any rate: a maximum is no less."""
    means = [
        summary.mean(size, arm, rate, lambda m: m.throughput)
        for rate in (*summary.rates(size, arm), None)
    ]
    return max((mean.value for mean in means if mean), default=None)
