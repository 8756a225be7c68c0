"""What the steady part of a point says: throughput, latency, saturation.

All times are seconds on one clock. The first requests meet an empty server and
are left out: of a server that keeps up, for a ramp of time; of one that falls
behind, until its batch is full. After the last arrival the server runs empty,
and what it does then counts only as long as requests wait.
"""

import math
from dataclasses import dataclass
from typing import Any, Optional, Sequence

import numpy as np
from numpy.typing import ArrayLike

from benchmarks.inference.analysis.intervals import t_quantile

__all__ = [
    'Steady',
    'Timings',
    'measure',
    'most_under_way',
    'steady_throughput',
]

# Shares of the offered rate: more than this missing, or piling up, saturates.
_SHORTFALL = 0.05
_BLOCKS = 8
# In-flight requests grow if chance would do this at 1 stable point in 100.
_CONFIDENCE = 0.99
# Of the time over which requests arrive, at the most.
_RAMP_SHARE = 0.25
# Of the mean time between first tokens: closer ones come together.
_TOGETHER = 0.1
# Of the whole run: a shorter window says little.
_WINDOW_SHARE = 1 / 3


class Timings:
    """What became of each request, in order of arrival.

    Args:
        start: When it was sent.
        end: When its last token came.
        ttft: Seconds from start to its first token.
        input_tokens: Of its prompt.
        output_tokens: Of its answer.
    """

    def __init__(
        self,
        start: Sequence[float],
        end: Sequence[float],
        ttft: Sequence[float],
        input_tokens: Sequence[int],
        output_tokens: Sequence[int],
    ):
        order = np.argsort(np.asarray(start, dtype=float), kind='stable')

        def array(values: Sequence[float]) -> np.ndarray:
            return np.asarray(values, dtype=float)[order]

        self.start, self.end = array(start), array(end)
        self.first = self.start + array(ttft)
        self.input_tokens = array(input_tokens)
        self.output_tokens = array(output_tokens)

    @property
    def latency(self) -> np.ndarray:
        return self.end - self.start


@dataclass(frozen=True)
class Steady:
    """What a point measured.

    Args:
        offered: Requests/s that arrived; None: all came at once.
        achieved: Requests/s that the server keeps up with.
        throughput_tokens_per_s: Input and output tokens/s.
        latency_mean_s: Of a request, from start to end.
        in_flight_slope: By how many requests the requests in flight grow a
            second; None: all came at once.
        saturated: Whether the server falls behind.
        steady_from_s: Requests that start from then on count for latency,
            seconds from the first start.
        window: From when to when the throughput is of, seconds from the first
            request's start.
    """

    offered: Optional[float]
    achieved: float
    throughput_tokens_per_s: float
    latency_mean_s: float
    in_flight_slope: Optional[float]
    saturated: bool
    steady_from_s: float
    window: tuple[float, float]

    def to_json(self) -> dict[str, Any]:
        return {**self.__dict__, 'window': list(self.window)}


def measure(timings: Timings, rate: Optional[float]) -> Steady:
    """Measures a point.

    With arrivals at a rate, latencies are of the requests that arrive after the
    ramp, and the point is saturated if

    - achieved / offered is below 0.95. Requests that arrive over T seconds end
      over T' seconds, so achieved = offered T / T'. T' / T is the least-squares
      slope of ends against starts, which a single slow request or the tail
      after the last arrival changes little; below 1 it counts as 1.
    - or the requests in flight grow by over 5 % of the arrivals, beyond chance:
      the least-squares slope of their means in 8 blocks of time, by a
      one-sided t test at 1 %. It assumes that blocks are independent: that
      they are not much shorter than a latency.

    Both assume that the client sends at the rate that it is asked for. Near the
    knee, points of few requests are marked by chance. Of simulated servers:

    ========  =======================  ===================
    requests  marked at 0.8, 0.9 of    missed at 1.1, 1.2
              the capacity
    ========  =======================  ===================
    24        1 in 4, 1 in 3           1 in 2, 1 in 3
    48        1 in 15, 1 in 6          1 in 3, 1 in 6
    120       none, 1 in 15            1 in 4, 1 in 30
    400       none, none               1 in 10, none
    ========  =======================  ===================

    Unbounded, all requests come at once: the server is saturated by design,
    latencies are of all requests, and achieved is the throughput in requests.

    Args:
        timings: Of all requests.
        rate: Requests/s; None: unbounded.
    """
    ramp = 0.0 if rate is None else _ramp(timings)
    steady = timings.start >= timings.start[0] + ramp
    slope = None
    if rate is None:
        saturated = True
        throughput, window = steady_throughput(timings, _after_batch(timings))
        tokens = np.mean(timings.input_tokens + timings.output_tokens)
        achieved = throughput / float(tokens)
    else:
        achieved = rate / max(_slope(timings.start, timings.end, steady), 1.0)
        slope, grows = _growth(timings, timings.start[0] + ramp, rate)
        saturated = achieved < (1 - _SHORTFALL) * rate or grows
        opening = _when_full(timings) if saturated else _after_ramp(timings)
        throughput, window = steady_throughput(timings, opening)
    return Steady(
        offered=rate,
        achieved=float(achieved),
        throughput_tokens_per_s=throughput,
        latency_mean_s=float(np.mean(timings.latency[steady])),
        in_flight_slope=slope,
        saturated=bool(saturated),
        steady_from_s=ramp,
        window=window,
    )


def _ramp(timings: Timings) -> float:
    """Seconds from the first start until the server is as full as it gets.

    The median latency, up to a quarter of the time over which requests arrive.
    """
    span = timings.start[-1] - timings.start[0]
    return float(min(np.median(timings.latency), _RAMP_SHARE * span))


def steady_throughput(
    timings: Timings,
    opening: int,
) -> tuple[float, tuple[float, float]]:
    """Input and output tokens/s while requests arrive or wait.

    A prompt counts, with the first token of its answer, when that comes, and
    the answer's other tokens evenly from then to the end. So the time for which
    a request waits counts nothing, and a growing queue is not taken for work.

    The window goes from one first token to the last of all: until then requests
    arrive or wait, and between first tokens lie whole prompts. Where that is
    less than a third of the run (all requests in one batch; a client too busy
    to see answers as they come) it is the whole run, from first start to last
    end.

    Args:
        timings: Of all requests.
        opening: Which first token opens the window, in the order of time.

    Returns:
        Tokens/s; window in seconds from the first start.
    """
    first, origin = np.sort(timings.first), timings.start[0]
    low, high = first[opening], first[-1]
    if high - low > _WINDOW_SHARE * (timings.end.max() - origin):
        done = _tokens_until(timings, high) - _tokens_until(timings, low)
    else:
        low, high = origin, timings.end.max()
        done = np.sum(timings.input_tokens + timings.output_tokens)
    throughput = float(done) / float(high - low)
    return throughput, (float(low - origin), float(high - origin))


def _after_ramp(timings: Timings) -> int:
    """First token that opens the window of a server that keeps up.

    The first after the ramp; of those that come together, as of prompts of one
    step of the engine, the last.
    """
    first = np.sort(timings.first)
    opening = int(np.searchsorted(first, timings.start[0] + _ramp(timings)))
    gaps = np.diff(first)
    apart = gaps[opening:] >= _TOGETHER * np.mean(gaps)
    # If none are apart, the last.
    return opening + (int(np.argmax(apart)) if apart.any() else len(apart))


def _when_full(timings: Timings) -> int:
    """First token that opens the window of a server that falls behind.

    The first with as many answers under way as at the last: a server that
    fills up in the window reads more prompts than it answers, and prompts are
    quick. In simulated batches of 8 this is 0 to 2 % too low for 48 requests at
    1.2 times the capacity and above, and 4 % where it opens after the ramp.
    """
    under_way = _under_way(timings.first, timings.end, np.sort(timings.first))
    return int(np.argmax(under_way >= under_way[-1]))


def _after_batch(timings: Timings) -> int:
    """First token that opens the window of an unbounded rate.

    Requests of one length that come at once go through the server as one batch
    after another. The window opens when the first batch is full, or later, so
    that it has whole batches.
    """
    n = len(timings.first)
    batch = most_under_way(timings.first, timings.end)
    return n - 1 - (n - batch) // batch * batch


def most_under_way(first: ArrayLike, end: ArrayLike) -> int:
    """The most answers that were begun and not ended at once.

    Args:
        first: When the first token of each came, seconds.
        end: When its last did, on the same clock.
    """
    first = np.asarray(first)
    return int(_under_way(first, np.asarray(end), first).max())


def _under_way(
    first: np.ndarray,
    end: np.ndarray,
    times: np.ndarray,
) -> np.ndarray:
    """Answers begun and not ended at each time, those that begin included."""
    begun = np.searchsorted(np.sort(first), times, side='right')
    ended = np.searchsorted(np.sort(end), times, side='right')
    return begun - ended


def _tokens_until(timings: Timings, time: float) -> float:
    """Tokens that count up to a time, that included."""
    decoding = np.maximum(timings.end - timings.first, 1e-9)
    share = np.clip((time - timings.first) / decoding, 0, 1)
    prefilled = timings.first <= time
    return float(
        np.sum(prefilled * (timings.input_tokens + 1)) +
        np.sum(share * (timings.output_tokens - 1)),
    )


def _slope(x: np.ndarray, y: np.ndarray, among: np.ndarray) -> float:
    """Least-squares slope; 1 where there are too few to tell."""
    x, y = x[among], y[among]
    if len(x) < 3 or np.ptp(x) == 0:
        return 1.0
    x = x - x.mean()
    return float(np.sum(x * (y - y.mean())) / np.sum(x * x))


def _growth(
    timings: Timings,
    begin: float,
    rate: float,
) -> tuple[float, bool]:
    """Growth of the requests in flight, up to the last arrival.

    Returns:
        Requests/s, and whether it is more than 5 % of the rate and than chance.
    """
    edges = np.linspace(begin, timings.start[-1], _BLOCKS + 1)
    in_flight = _mean_in_flight(timings, edges)
    times = (edges[1:] + edges[:-1]) / 2
    everything = np.ones(_BLOCKS, dtype=bool)
    slope = _slope(times, in_flight, everything)
    centred = times - times.mean()
    residual = in_flight - in_flight.mean() - slope * centred
    variance = np.sum(residual**2) / (_BLOCKS - 2)
    error = math.sqrt(variance / np.sum(centred**2))
    certain = slope > t_quantile(_CONFIDENCE, _BLOCKS - 2) * error
    return slope, bool(slope > _SHORTFALL * rate and certain)


def _mean_in_flight(timings: Timings, edges: np.ndarray) -> np.ndarray:
    """Requests in flight, in the mean over each block between edges."""
    low_B1, high_B1 = edges[:-1, None], edges[1:, None]
    begin_BN = np.maximum(timings.start, low_B1)
    overlap_BN = np.minimum(timings.end, high_B1) - begin_BN
    return np.clip(overlap_BN, 0, None).sum(axis=1) / np.diff(edges)
