"""How long requests take, from the quick to the slow."""

from typing import Callable, Mapping, Optional

import numpy as np

from benchmarks.inference.report.estimates import Estimate, mean_of
from benchmarks.inference.report.records import Arm, Requests
from benchmarks.inference.report.summary import Summary

__all__ = ['PERCENTILES', 'TIMES', 'percentiles', 'pooled']

PERCENTILES = (50, 90, 99)
# Name -> seconds of each request.
TIMES: Mapping[str, Callable[[Requests], tuple[float, ...]]] = {
    'time to first token': lambda requests: requests.ttft,
    'latency': lambda requests: requests.latency,
}


def _times(summary: Summary, size: str, arm: Arm, rate: float,
           name: str) -> list[tuple[float, ...]]:
    return [
        TIMES[name](point.requests)
        for point in summary.runs(size, arm, rate).values()
        if point.requests
    ]


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
        In seconds. All requests of a run count, also those that came before
        the server was in its steady state.
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
    """Seconds of the requests of all runs, ascending."""
    return np.sort(np.concatenate(_times(summary, size, arm, rate, name)))
