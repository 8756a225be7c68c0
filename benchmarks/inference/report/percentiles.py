"""How long requests take, from the quick to the slow.

Of the requests that a point's mean latency is of: those that start when the
server is in its steady state.
"""

from typing import Callable, Mapping, Optional

import numpy as np

from benchmarks.inference.report.estimates import Estimate, mean_of
from benchmarks.inference.report.records import Arm, Point, Requests
from benchmarks.inference.report.summary import Summary

__all__ = ['PERCENTILES', 'TIMES', 'percentiles', 'pooled', 'steady_times']

PERCENTILES = (50, 90, 99)
# Name -> seconds of each request.
TIMES: Mapping[str, Callable[[Requests], tuple[float, ...]]] = {
    'time to first token': lambda requests: requests.ttft,
    'latency': lambda requests: requests.latency,
}


def steady_times(point: Point, name: str) -> np.ndarray:
    """Seconds of the requests that count for latency.

    Args:
        point: A done one.
        name: One of ``TIMES``.
    """
    assert point.requests and point.measured  # for pyright: it is done
    start = np.array(point.requests.start)
    begin = start.min() + point.measured.steady_from
    return np.array(TIMES[name](point.requests))[start >= begin]


def _times(summary: Summary, size: str, arm: Arm, rate: float,
           name: str) -> list[np.ndarray]:
    points = summary.runs(size, arm, rate).values()
    return [steady_times(point, name) for point in points]


def percentiles(
    summary: Summary,
    size: str,
    arm: Arm,
    rate: float,
    name: str,
) -> list[Optional[Estimate]]:
    """Mean over runs of each run's mean, then of its ``PERCENTILES``.

    Args:
        summary: Of the study.
        size: Of the model.
        arm: What is served.
        rate: Requests a second.
        name: One of ``TIMES``.

    Returns:
        In seconds, of requests in the steady state.
    """
    runs = _times(summary, size, arm, rate, name)
    means = [float(np.mean(run)) for run in runs]
    return [
        mean_of(means),
        *(
            mean_of([float(np.percentile(run, percentile))
                     for run in runs])
            for percentile in PERCENTILES
        ),
    ]


def pooled(
    summary: Summary,
    size: str,
    arm: Arm,
    rate: float,
    name: str,
) -> np.ndarray:
    """Seconds of the steady requests of all runs, ascending."""
    return np.sort(np.concatenate(_times(summary, size, arm, rate, name)))
