"""What other programs read of a report: ``points.csv``, ``serving.json``.

``serving.json`` is of format ``foundry_upcycle/serving/1``, which
``foundry-upcycle study report --serving`` reads::

    {"format": "foundry_upcycle/serving/1",
     "labels": ["CPU", "dummy weights"],
     "models": [{"size": "430m", "experts": 8, "top_k": 2,
                 "max_throughput_tokens_per_s":
                     {"mean": 900.0, "low": 880.0, "high": 915.0}}]}
"""

import csv
import io
import json
from typing import Any, Iterator, Optional

import numpy as np

from benchmarks.inference.report.engines import MACHINE, core_names
from benchmarks.inference.report.maximum import find_maxima
from benchmarks.inference.report.percentiles import (
    PERCENTILES,
    TIMES,
    steady_times,
)
from benchmarks.inference.report.records import Point
from benchmarks.inference.report.summary import Summary

__all__ = ['SERVING_FORMAT', 'points_csv', 'serving_json', 'too_noisy']

SERVING_FORMAT = 'foundry_upcycle/serving/1'
_ENGINE = (
    'devices',
    'kv_cache_tokens',
    'weight_bytes',
    'moe_kernel',
    'tuned_config',
    'top_k_checked',
    'start_seconds',
)


def points_csv(summary: Summary) -> str:
    """A line for each point, whether done or not, in order of ids."""
    rows = [_row(point) for point in summary.points]
    file = io.StringIO()
    writer = csv.DictWriter(
        file,
        # A point that is not done lacks the last ones.
        list(max(rows, key=len)),
        lineterminator='\n',
    )
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def _row(point: Point) -> dict[str, Any]:
    row = {
        'id': point.id,
        'size': point.size,
        'name': point.arm.name,
        'architecture': 'dense' if point.arm.is_dense else 'moe',
        'experts': point.arm.experts,
        'top_k': point.arm.top_k,
        'variant': point.arm.variant,
        'rate': 'inf' if point.rate is None else point.rate,
        'run': point.run,
        'status': point.status,
        'reason': point.reason,
        'labels': '; '.join(point.labels),
        'seconds': point.seconds,
        **{
            key: point.machine.get(key)
            for key in MACHINE
        },
        **{
            key: point.engine.get(key)
            for key in _ENGINE
        },
        'cpu_cores': core_names(point),
    }
    if point.measured and point.requests and point.counters:
        row.update(vars(point.measured))
        row.update(vars(point.counters))
        row['n_requests'] = len(point.requests.start)
        for name in TIMES:
            times = steady_times(point, name)
            for percentile in PERCENTILES:
                key = f"{name.replace(' ', '_')}_p{percentile}_s"
                seconds = np.percentile(times, percentile)
                row[key] = float(seconds)
    return row


def serving_json(summary: Summary) -> Optional[str]:
    """What each size's own models serve at most, without variants.

    Where there is one run, ``low`` and ``high`` are its value, and a label says
    so.

    Returns:
        None where no maximum was measured.
    """
    models = list(_models(summary))
    if not models:
        return None
    labels = list(summary.labels)
    if any(found.throughput.interval is None
           for size in summary.sizes
           for found in find_maxima(summary, size).values()):
        labels.append('one run, no interval')
    content = {'format': SERVING_FORMAT, 'labels': labels, 'models': models}
    return f'{json.dumps(content, indent=2)}\n'


def _models(summary: Summary) -> Iterator[dict[str, Any]]:
    noisy = too_noisy(summary)
    for size in summary.sizes:
        for arm, found in find_maxima(summary, size).items():
            if not arm.name and (size, arm) not in noisy:
                mean = found.throughput
                low, high = mean.interval or (mean.value, mean.value)
                yield {
                    'size': size,
                    'experts': arm.experts,
                    'top_k': arm.top_k,
                    'max_throughput_tokens_per_s': {
                        'mean': mean.value,
                        'low': low,
                        'high': high,
                    },
                }


def too_noisy(summary: Summary) -> list[tuple[str, Any]]:
    """Size and model of maxima whose intervals reach down to 0 or beyond.

    ``serving.json`` lacks them, as a cost by them would have no bound.
    """
    return [(size, arm)
            for size in summary.sizes
            for arm, found in find_maxima(summary, size).items()
            if not arm.name and found.throughput.interval
            and found.throughput.interval[0] <= 0]
