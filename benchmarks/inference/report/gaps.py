"""How much of a mixture's gap to its dense model each variant closes.

Throughput is compared per device, as a variant may take more of them than what
it is compared with; latency is as it is.
"""

from dataclasses import dataclass
from typing import Iterable, Iterator, Mapping, Optional, Sequence

from benchmarks.inference.report.estimates import Estimate, closed_of, drop_of
from benchmarks.inference.report.maximum import common_kind, maximum_runs
from benchmarks.inference.report.records import BASE, Arm
from benchmarks.inference.report.summary import DENSE, Summary

__all__ = [
    'Gap',
    'LOWER_K',
    'OTHER_MODEL',
    'find_gaps',
    'skipped_variants',
    'throughput_name',
]

# What the tables call it when a mixture visits fewer experts, which a study
# measures without a variant.
LOWER_K = 'lower K'
# And when the size has other weights beside the mixture's, such as shrunk ones.
OTHER_MODEL = 'other model'


@dataclass(frozen=True)
class Gap:
    """What a variant does to a mixture.

    Args:
        size: Of the models.
        variant: Its name.
        arm: The mixture with it.
        base: The mixture without it; None: it was not measured, so that there
            is no gap.
        devices: Over how many the mixture with it is spread.
        base_devices: Over how many the mixture without it is; None: likewise.
        rate: The lowest rate, in requests/s, at which the two and the dense
            model keep up; None where there is none.
        latency: Share of the gap in mean latency that it closes there.
        kind: How maximum throughput was measured of all three; None where it
            was not.
        throughput: Share of the gap in maximum throughput per device that it
            closes.
        drop: Of maximum throughput against the dense model with the same
            variant, which has as many devices, where that was measured.
    """

    size: str
    variant: str
    arm: Arm
    base: Optional[Arm]
    devices: int
    base_devices: Optional[int]
    rate: Optional[float]
    latency: Optional[Estimate]
    kind: Optional[str]
    throughput: Optional[Estimate]
    drop: Optional[Estimate]

    @property
    def is_per_device(self) -> bool:
        """Whether the two are of different numbers of devices."""
        return self.base_devices not in (None, self.devices)


def throughput_name(gaps: Iterable[Gap]) -> str:
    """What the gaps in throughput are of, in words."""
    is_per_device = any(gap.is_per_device for gap in gaps)
    return 'throughput per device' if is_per_device else 'throughput'


def find_gaps(summary: Summary, size: str) -> Iterator[Gap]:
    """Of each variant and mixture of a size that was measured."""
    mixtures = summary.mixtures(size)
    own = [arm for arm in mixtures if not arm.name]
    for arm in own:
        highest = max(a for a in own if a.experts == arm.experts)
        if arm != highest:
            yield _gap(summary, size, LOWER_K, arm, highest)
    for arm in summary.others(size):
        yield _gap(summary, size, OTHER_MODEL, arm, max(own, default=None))
    for arm in summary.variants(size):
        if not arm.is_dense:
            base = arm.base if arm.base in mixtures else None
            yield _gap(summary, size, arm.variant, arm, base)


def _gap(
    summary: Summary,
    size: str,
    variant: str,
    arm: Arm,
    base: Optional[Arm],
) -> Gap:
    rate = latency = kind = throughput = None
    if base is not None:
        arms = arm, base, DENSE
        rate = next(iter(summary.keeping_up(size, arms)), None)
        kind = common_kind(summary, size, arms)
        latency = _latency_closed(summary, size, arms, rate)
        throughput = _throughput_closed(summary, size, arms, kind)
    return Gap(
        size=size,
        variant=variant,
        arm=arm,
        base=base,
        devices=summary.devices(size, arm),
        base_devices=None if base is None else summary.devices(size, base),
        rate=rate,
        latency=latency,
        kind=kind,
        throughput=throughput,
        drop=_drop(summary, size, arm),
    )


def _latency_closed(
    summary: Summary,
    size: str,
    arms: Sequence[Arm],
    rate: Optional[float],
) -> Optional[Estimate]:
    if rate is None:
        return None
    values = [summary.values(size, a, rate, lambda m: m.latency) for a in arms]
    return closed_of(*values, more_is_better=False)


def _throughput_closed(
    summary: Summary,
    size: str,
    arms: Sequence[Arm],
    kind: Optional[str],
) -> Optional[Estimate]:
    if kind is None:
        return None
    values = [_per_device(summary, size, arm, kind) for arm in arms]
    return closed_of(*values, more_is_better=True)


def _per_device(
    summary: Summary,
    size: str,
    arm: Arm,
    kind: str,
) -> dict[int, float]:
    """Run -> maximum tokens a second of each device."""
    runs = maximum_runs(summary, size, arm, kind)
    return {
        run: value / summary.devices(size, arm)
        for run, value in runs.items()
    }


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
