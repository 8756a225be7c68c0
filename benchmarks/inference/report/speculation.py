"""What drafting tokens brings: how many are accepted, and how fast it is."""

from dataclasses import dataclass
from typing import Iterator, Optional

from benchmarks.inference.report.estimates import Estimate, mean_of
from benchmarks.inference.report.records import Arm
from benchmarks.inference.report.summary import Summary

__all__ = ['Speculation', 'find_speculation']


@dataclass(frozen=True)
class Speculation:
    """Of one rate.

    Args:
        arm: That drafts.
        rate: Requests/s; None is unbounded.
        acceptance: Accepted draft tokens as a share of drafted ones.
        speed_up: Mean latency without drafts divided by that with them; of a
            saturated or unbounded rate throughput with them divided by that
            without, as latency is of the queue there.
        is_saturated: Which of the two it is.
    """

    arm: Arm
    rate: Optional[float]
    acceptance: Optional[Estimate]
    speed_up: Optional[Estimate]
    is_saturated: bool


def find_speculation(summary: Summary, size: str) -> Iterator[Speculation]:
    """Of each arm that drafted, rate by rate, the unbounded one last."""
    for arm in (*summary.arms(size), *summary.variants(size)):
        for rate in (*summary.rates(size, arm), None):
            acceptance = mean_of(_acceptances(summary, size, arm, rate))
            if acceptance is not None:
                yield _of_rate(summary, size, arm, rate, acceptance)


def _acceptances(
    summary: Summary,
    size: str,
    arm: Arm,
    rate: Optional[float],
) -> list[float]:
    counters = [p.counters for p in summary.runs(size, arm, rate).values()]
    return [(counts.spec_accepted or 0) / counts.spec_drafted
            for counts in counters
            if counts and counts.spec_drafted]


def _of_rate(
    summary: Summary,
    size: str,
    arm: Arm,
    rate: Optional[float],
    acceptance: Estimate,
) -> Speculation:
    is_saturated = rate is None or any(
        summary.is_saturated(size, a, rate) for a in (arm, arm.base)
    )
    pair = [
        summary.values(
            size,
            a,
            rate,
            lambda m: m.throughput if is_saturated else 1 / m.latency,
        ) for a in (arm, arm.base)
    ]
    runs = sorted(set(pair[0]) & set(pair[1])) if arm != arm.base else []
    ratios = [pair[0][run] / pair[1][run] for run in runs]
    return Speculation(arm, rate, acceptance, mean_of(ratios), is_saturated)
