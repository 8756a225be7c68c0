"""What answers are worth: each server's quality against what it costs.

Losses, tokens and answers of two servers are compared on the same documents and
prompts, in pairs.
"""

from dataclasses import dataclass, replace
from typing import Mapping, Optional, Sequence

from benchmarks.inference.analysis.intervals import (
    ratio_interval,
    share_interval,
)
from benchmarks.inference.report.answers import Answers
from benchmarks.inference.report.estimates import Estimate, mean_of
from benchmarks.inference.report.maximum import common_kind, maximum_runs
from benchmarks.inference.report.records import Arm
from benchmarks.inference.report.summary import Summary

__all__ = [
    'Quality',
    'find_quality',
    'front_of_latency',
    'front_of_throughput',
    'pareto',
]


@dataclass(frozen=True)
class Quality:
    """Of a server; its intervals are over documents, prompts or records.

    Args:
        arm: What is served.
        nll: Mean negative log-likelihood of a token, nats.
        bits_per_byte: The same by bytes of text, where they are known.
        behind: ``nll`` less the reference's; of itself None.
        gain: Share of the reference's gain over the baseline that it has; None
            where there is no such gain.
        alike: Share of the places in the texts at which it finds the same
            token likeliest as the reference.
        until: Share of greedy tokens before the first that differs from the
            reference's.
        whole: Share of greedy answers that are wholly the reference's.
        tasks: Task -> share of records that it answers right.
        throughput: Tokens/s at the most, per device.
        kind: How that was measured, one of ``maximum.KINDS``.
        latency: Mean seconds of a request at ``rate``.
        rate: The lowest rate, requests/s, that all servers keep up with.
        weight_bytes: On all devices, if known.
    """

    arm: Arm
    nll: Estimate
    bits_per_byte: Optional[Estimate]
    behind: Optional[Estimate]
    gain: Optional[Estimate]
    alike: Optional[Estimate]
    until: Optional[Estimate]
    whole: Optional[Estimate]
    tasks: Mapping[str, Estimate]
    throughput: Optional[Estimate]
    kind: Optional[str]
    latency: Optional[Estimate]
    rate: Optional[float]
    weight_bytes: Optional[float]


def find_quality(
    summary: Summary,
    answers: Mapping[Arm, Answers],
    size: str,
) -> list[Quality]:
    """Of each server of a size that was asked, in order of arms.

    Args:
        summary: What was measured of speed.
        answers: Of the size.
        size: Its name.
    """
    arms = sorted(answers)
    rate = next(iter(summary.keeping_up(size, arms)), None)
    kind = common_kind(summary, size, arms)
    return [_quality(summary, answers, size, arm, rate, kind) for arm in arms]


def _quality(
    summary: Summary,
    answers: Mapping[Arm, Answers],
    size: str,
    arm: Arm,
    rate: Optional[float],
    kind: Optional[str],
) -> Quality:
    own = answers[arm]
    reference = answers.get(own.reference)
    baseline = answers.get(own.baseline)
    other = None if reference is own else reference
    n_bytes = own.n_bytes
    return Quality(
        arm=arm,
        nll=_ratio(own.nll, own.tokens),
        bits_per_byte=n_bytes and _ratio(own.bits, n_bytes),
        behind=other and _ratio(_less(own.nll, other.nll), own.tokens),
        gain=_gain(own, reference, baseline),
        alike=other and _within(
            [_n_alike(*pair) for pair in zip(own.likeliest, other.likeliest)],
            own.tokens,
        ),
        until=other and _within(
            [_n_until(*pair) for pair in zip(own.greedy, other.greedy)],
            [len(answer) for answer in own.greedy],
        ),
        whole=other
        and _share([float(a == b) for a, b in zip(own.greedy, other.greedy)], ),
        tasks={
            name: _share(right)
            for name, right in own.tasks.items()
        },
        throughput=kind and _throughput(summary, size, arm, kind),
        kind=kind,
        latency=None
        if rate is None else summary.mean(size, arm, rate, lambda m: m.latency),
        rate=rate,
        weight_bytes=_weight_bytes(summary, size, arm),
    )


def _ratio(parts: Sequence[float], wholes: Sequence[float]) -> Estimate:
    if len(parts) == 1:
        return Estimate(parts[0] / wholes[0], None, 1)
    value, low, high = ratio_interval(parts, wholes)
    return Estimate(value, (low, high), len(parts))


def _within(parts: Sequence[float], wholes: Sequence[float]) -> Estimate:
    """A ratio that is between 0 and 1, as its interval then is."""
    found = _ratio(parts, wholes)
    if found.interval is None:
        return found
    low, high = found.interval
    return replace(found, interval=(max(low, 0.0), min(high, 1.0)))


def _share(right: Sequence[float]) -> Estimate:
    """Of answers that are right, 1, or not, 0."""
    value, low, high = share_interval(sum(right), len(right))
    return Estimate(value, (low, high), len(right))


def _less(a: Sequence[float], b: Sequence[float]) -> list[float]:
    return [x - y for x, y in zip(a, b, strict=True)]


def _gain(
    own: Answers,
    reference: Optional[Answers],
    baseline: Optional[Answers],
) -> Optional[Estimate]:
    """(baseline - own) / (baseline - reference), of losses.

    Without an interval where the two are not told apart.
    """
    if reference is None or baseline is None or reference is baseline:
        return None
    whole = _less(baseline.nll, reference.nll)
    if sum(whole) <= 0:
        return None
    gained = _less(baseline.nll, own.nll)
    apart = _ratio(whole, own.tokens).interval
    if apart is None or apart[0] <= 0:
        return Estimate(sum(gained) / sum(whole), None, len(whole))
    return _ratio(gained, whole)


def _n_alike(a: Sequence[int], b: Sequence[int]) -> float:
    return float(sum(x == y for x, y in zip(a, b, strict=True)))


def _n_until(a: Sequence[int], b: Sequence[int]) -> float:
    """Tokens before the first that differs."""
    differ = (i for i, pair in enumerate(zip(a, b)) if pair[0] != pair[1])
    return float(next(differ, len(a)))


def _throughput(
    summary: Summary,
    size: str,
    arm: Arm,
    kind: str,
) -> Optional[Estimate]:
    runs = maximum_runs(summary, size, arm, kind).values()
    return mean_of([run / summary.devices(size, arm) for run in runs])


def _weight_bytes(summary: Summary, size: str, arm: Arm) -> Optional[float]:
    of_arm = [p for p in summary.of_size(size) if p.arm == arm]
    found = [p.engine.get('weight_bytes') for p in of_arm]
    known = [value for value in found if value]
    return max(known) * summary.devices(size, arm) if known else None


def front_of_throughput(found: Sequence[Quality]) -> list[bool]:
    """Of each, whether none has a lower loss and a higher throughput."""
    return pareto([
        q.throughput and (q.nll.value, -q.throughput.value) for q in found
    ])


def front_of_latency(found: Sequence[Quality]) -> list[bool]:
    """Of each, whether none has a lower loss and a lower latency."""
    return pareto([q.latency and (q.nll.value, q.latency.value) for q in found])


def pareto(costs: Sequence[Optional[tuple[float, float]]]) -> list[bool]:
    """Of each, whether none is better in one of its costs and no worse in both.

    Args:
        costs: Two each, of which less is better; None: unknown, and so not on
            the front.
    """
    known = [cost for cost in costs if cost is not None]
    return [
        cost is not None and not any(
            other != cost and other[0] <= cost[0] and other[1] <= cost[1]
            for other in known
        )
        for cost in costs
    ]
