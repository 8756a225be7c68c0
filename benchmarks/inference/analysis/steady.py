"""What the steady part of a point says: throughput, latency, saturation.

All times are seconds on one clock. The first requests meet an empty server and
are left out (the ramp); after the last arrival the server runs empty, and what
it does then counts only as long as requests wait.
"""

import math
from dataclasses import dataclass
from typing import Any, Optional, Sequence

import numpy as np

from benchmarks.inference.analysis.intervals import t_quantile

__all__ = ['Steady', 'Timings', 'measure', 'steady_throughput']

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
        latency_p50_s: Likewise.
        latency_p99_s: Likewise.
        in_flight_slope: By how many requests the requests in flight grow a
            second; None: all came at once.
        saturated: Whether the server falls behind.
        window: From when to when the throughput is of, seconds from the first
            request's start.
    """

    offered: Optional[float]
    achieved: float
    throughput_tokens_per_s: float
    latency_mean_s: float
    latency_p50_s: float
    latency_p99_s: float
    in_flight_slope: Optional[float]
    saturated: bool
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
    knee, points of few requests are marked by chance: of simulated queues of
    120 requests 1 in 15 at 0.9 of the capacity and none at 0.8, while at 1.1 of
    it 1 in 5 is missed; of 400 requests, none and 1 in 10.

    Unbounded, all requests come at once: the server is saturated by design,
    latencies are of all requests, and achieved is the throughput in requests.

    Args:
        timings: Of all requests.
        rate: Requests/s; None: unbounded.
    """
    ramp = 0.0 if rate is None else _ramp(timings)
    throughput, window = steady_throughput(timings, rate)
    steady = timings.start >= timings.start[0] + ramp
    latency = timings.latency[steady]
    slope = None
    if rate is None:
        tokens = np.mean(timings.input_tokens + timings.output_tokens)
        achieved, saturated = throughput / float(tokens), True
    else:
        achieved = rate / max(_slope(timings.start, timings.end, steady), 1.0)
        slope, grows = _growth(timings, timings.start[0] + ramp, rate)
        saturated = achieved < (1 - _SHORTFALL) * rate or grows
    return Steady(
        offered=rate,
        achieved=float(achieved),
        throughput_tokens_per_s=throughput,
        latency_mean_s=float(np.mean(latency)),
        latency_p50_s=float(np.percentile(latency, 50)),
        latency_p99_s=float(np.percentile(latency, 99)),
        in_flight_slope=slope,
        saturated=bool(saturated),
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
    rate: Optional[float],
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
        rate: Requests/s; None: unbounded.

    Returns:
        Tokens/s; window in seconds from the first start.
    """
    first, origin = np.sort(timings.first), timings.start[0]
    if rate is None:
        opening = _after_batch(timings)
    else:
        opening = _after_ramp(first, origin + _ramp(timings))
    low, high = first[opening], first[-1]
    if high - low > _WINDOW_SHARE * (timings.end.max() - origin):
        done = _tokens_until(timings, high) - _tokens_until(timings, low)
    else:
        low, high = origin, timings.end.max()
        done = np.sum(timings.input_tokens + timings.output_tokens)
    throughput = float(done) / float(high - low)
    return throughput, (float(low - origin), float(high - origin))


def _after_ramp(first: np.ndarray, ramp_end: float) -> int:
    """Index of the first token that opens the window of a rate.

    The first after the ramp; of those that come together, as of prompts of one
    step of the engine, the last.
    """
    opening = int(np.searchsorted(first, ramp_end))
    gaps = np.diff(first)
    apart = gaps[opening:] >= _TOGETHER * np.mean(gaps)
    # If none are apart, the last.
    return opening + (int(np.argmax(apart)) if apart.any() else len(apart))


def _after_batch(timings: Timings) -> int:
    """Index of the first token that opens the window of an unbounded rate.

    Requests of one length that come at once go through the server as one batch
    after another. The window opens when the first batch is full, or later, so
    that it has whole batches.
    """
    # Most answers under way at once.
    times = np.concatenate([timings.first, timings.end])
    changes = np.repeat([1, -1], len(timings.first))
    # Of equal times, ends first.
    batch = int(np.cumsum(changes[np.lexsort((changes, times))]).max(initial=1))
    n = len(timings.first)
    return n - 1 - (n - batch) // batch * batch


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
