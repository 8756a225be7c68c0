"""How much of a mixture's gap to its dense model each variant closes."""

from dataclasses import dataclass
from typing import Iterator, Mapping, Optional, Sequence

from benchmarks.inference.report.estimates import Estimate, closed_of, drop_of
from benchmarks.inference.report.maximum import common_kind, maximum_runs
from benchmarks.inference.report.records import BASE, Arm
from benchmarks.inference.report.summary import DENSE, Summary

__all__ = ['Gap', 'LOWER_K', 'find_gaps', 'skipped_variants']

# What the tables call it when a mixture visits fewer experts, which a study
# measures without a variant.
LOWER_K = 'lower K'


@dataclass(frozen=True)
class Gap:
    """What a variant does to a mixture.

    Args:
        size: Of the models.
        variant: Its name.
        arm: The mixture with it.
        base: The mixture without it.
        rate: The lowest rate, in requests/s, at which the two and the dense
            model keep up; None where there is none.
        latency: Share of the gap in mean latency that it closes there.
        kind: How maximum throughput was measured of all three; None where it
            was not.
        throughput: Share of the gap in maximum throughput that it closes.
        drop: Of maximum throughput against the dense model with the same
            variant, where that was measured.
    """

    size: str
    variant: str
    arm: Arm
    base: Arm
    rate: Optional[float]
    latency: Optional[Estimate]
    kind: Optional[str]
    throughput: Optional[Estimate]
    drop: Optional[Estimate]


def find_gaps(summary: Summary, size: str) -> Iterator[Gap]:
    """Of each variant and mixture of a size that was measured."""
    mixtures = summary.mixtures(size)
    for arm in mixtures:
        highest = max(a for a in mixtures if a.experts == arm.experts)
        if arm != highest:
            yield _gap(summary, size, LOWER_K, arm, highest)
    for arm in summary.variants(size):
        if not arm.is_dense:
            base = _base(summary, size, arm)
            if base is not None:
                yield _gap(summary, size, arm.variant, arm, base)


def _base(summary: Summary, size: str, arm: Arm) -> Optional[Arm]:
    """What to compare a variant with.

    The mixture without it; of a variant that changes K, which has none of its
    own, the one with the most experts a token.
    """
    mixtures = [a for a in summary.mixtures(size) if a.experts == arm.experts]
    if arm.base in mixtures:
        return arm.base
    return max(mixtures, default=None)


def _gap(
    summary: Summary,
    size: str,
    variant: str,
    arm: Arm,
    base: Arm,
) -> Gap:
    arms = arm, base, DENSE
    rate = next(iter(summary.keeping_up(size, arms)), None)
    latency = throughput = None
    if rate is not None:
        values = [
            summary.values(size, a, rate, lambda m: m.latency) for a in arms
        ]
        latency = closed_of(*values, more_is_better=False)
    kind = common_kind(summary, size, arms)
    if kind is not None:
        values = [maximum_runs(summary, size, a, kind) for a in arms]
        throughput = closed_of(*values, more_is_better=True)
    return Gap(
        size=size,
        variant=variant,
        arm=arm,
        base=base,
        rate=rate,
        latency=latency,
        kind=kind,
        throughput=throughput,
        drop=_drop(summary, size, arm),
    )


def _drop(summary: Summary, size: str, arm: Arm) -> Optional[Estimate]:
    """Against the dense model with the same variant."""
    dense = Arm(1, 1, arm.variant)
    if arm.variant == BASE or dense not in summary.variants(size):
        return None
    kind = common_kind(summary, size, (dense, arm))
    if kind is None:
        return None
    return drop_of(
        *(maximum_runs(summary, size, a, kind) for a in (dense, arm))
    )


def skipped_variants(
    summary: Summary,
) -> Mapping[tuple[str, str, str], Sequence[Arm]]:
    """(Size, variant, reason) -> what was skipped for it."""
    found: dict[tuple[str, str, str], set[Arm]] = {}
    for point in summary.points:
        if point.status == 'skipped':
            key = point.size, point.arm.variant, point.reason or ''
            found.setdefault(key, set()).add(point.arm)
    return {key: sorted(arms) for key, arms in sorted(found.items())}
