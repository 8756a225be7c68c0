"""What a serving study measured, point by point."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Mapping, Optional

__all__ = ['BASE', 'Arm', 'Counters', 'Measured', 'Point', 'Requests']

# Of a server as the study has it, without a variant.
BASE = 'base'


@dataclass(frozen=True, order=True)
class Arm:
    """What is served, at one size.

    Args:
        experts: In each block; 1 of a dense model.
        top_k: How many of them a token visits.
        variant: Overlay of the study; ``base`` is none.
        name: Among its size's other models; empty: its own dense model or
            mixture.
    """

    experts: int
    top_k: int
    variant: str = BASE
    name: str = ''

    @property
    def is_dense(self) -> bool:
        return self.experts == 1

    @property
    def base(self) -> 'Arm':
        return replace(self, variant=BASE)


@dataclass(frozen=True)
class Requests:
    """What became of each request, in order of arrival.

    Args:
        start: When it was sent, in seconds from any fixed time.
        end: When its last token came, on the same clock.
        ttft: Seconds to its first token.
        tokens: Input and output tokens.
    """

    start: tuple[float, ...]
    end: tuple[float, ...]
    ttft: tuple[float, ...]
    tokens: tuple[float, ...]

    @property
    def latency(self) -> tuple[float, ...]:
        """Seconds from sending to the last token."""
        return tuple(e - s for s, e in zip(self.start, self.end, strict=True))


@dataclass(frozen=True)
class Measured:
    """What the requests of a point come to.

    Args:
        offered: Requests a second that were sent; None of an unbounded rate.
        achieved: Requests a second that were answered, if known.
        throughput: Input and output tokens a second in the steady state.
        whole_run: The same as the load generator has it, from the first
            request to the last answer, if it says so.
        latency: Mean seconds of a request, of those that start from
            ``steady_from`` on.
        saturated: Whether the server fell behind.
        steady_from: From when on requests count for latency, in seconds from
            the first start.
    """

    offered: Optional[float]
    achieved: Optional[float]
    throughput: float
    whole_run: Optional[float]
    latency: float
    saturated: bool
    steady_from: float


@dataclass(frozen=True)
class Counters:
    """What the engine counted during a point; None where it doesn't count.

    Args:
        prefix_cache_hits: Tokens found in the prefix cache.
        preemptions: Requests put off for want of KV-cache memory.
        spec_accepted: Draft tokens that the model accepted.
        spec_drafted: Draft tokens that it was given.
    """

    prefix_cache_hits: Optional[int]
    preemptions: Optional[int]
    spec_accepted: Optional[int]
    spec_drafted: Optional[int]


@dataclass(frozen=True, eq=False)
class Point:
    """One rate, one run.

    Args:
        path: The file that it was read from.
        id: Hash of ``config``.
        study: Name of the study.
        size: Name of the model's size.
        arm: What is served.
        rate: Requests a second; None where all come at once.
        run: From 0.
        status: ``done``, ``failed`` or ``skipped``.
        reason: Why it is not done.
        labels: What to know of it, such as ``CPU``.
        config: All that it was measured with.
        machine: What it was measured on.
        engine: What the engine says of itself.
        requests: Of a done one, as are those that follow.
        measured: Likewise.
        counters: Likewise.
        shares: Layer by layer each expert's share of the tokens' visits, if
            recorded.
        seconds: That the point took, if known.
    """

    path: Path
    id: str
    study: str
    size: str
    arm: Arm
    rate: Optional[float]
    run: int
    status: str
    reason: Optional[str]
    labels: tuple[str, ...]
    config: Mapping[str, Any]
    machine: Mapping[str, Any]
    engine: Mapping[str, Any]
    requests: Optional[Requests]
    measured: Optional[Measured]
    counters: Optional[Counters]
    shares: Optional[tuple[tuple[float, ...], ...]]
    seconds: Optional[float]

    @property
    def devices(self) -> int:
        """Over how many the model is spread, of a done one."""
        return self.engine['devices']
