"""What the engine says of itself: memory, kernels, preemptions."""

from typing import Any, Iterable

from benchmarks.inference.report.cells import NONE, markdown_table, plain, span
from benchmarks.inference.report.records import Arm, Point
from benchmarks.inference.report.summary import Summary

__all__ = ['engine_table', 'machine_key', 'machine_table', 'prefix_cache_hits']

_GIB = 2**30
# What tells one machine from another -> how the table calls it.
_MACHINE = {
    'gpu': 'GPU',
    'n_gpus': 'GPUs',
    'cpu': 'CPU',
    'cores': 'cores',
    'vllm': 'vLLM',
    'torch': 'torch',
}
_TUNED = {True: 'found', False: 'not found', None: NONE}


def engine_table(summary: Summary, size: str) -> str:
    """A row for each model of a size, variants too."""
    head = [
        'model',
        'weights (GiB)',
        'KV cache (tokens)',
        'preemptions',
        'K in the engine',
        'MoE kernel',
        'tuned configuration',
        'start (s)',
    ]
    rows = [
        _engine_row(summary, size, arm)
        for arm in (*summary.arms(size), *summary.variants(size))
    ]
    return markdown_table(head, rows)


def _engine_row(summary: Summary, size: str, arm: Arm) -> list[str]:
    points = [point for point in summary.of_size(size) if point.arm == arm]
    weights = [value / _GIB for value in _numbers(points, 'weight_bytes')]
    preemptions = [
        point.counters.preemptions
        for point in points
        if point.counters and point.counters.preemptions is not None
    ]
    return [
        summary.name(size, arm),
        span(weights, '.3g'),
        span(_numbers(points, 'kv_cache_tokens'), ',.0f'),
        f'{sum(preemptions):,}' if preemptions else NONE,
        _words(points, 'top_k_checked'),
        _words(points, 'moe_kernel'),
        ', '.join(
            sorted({
                _TUNED.get(point.engine.get('tuned_config'), NONE)
                for point in points
            }),
        ),
        span(_numbers(points, 'start_seconds'), '.0f'),
    ]


def _numbers(points: Iterable[Point], key: str) -> list[float]:
    values = (point.engine.get(key) for point in points)
    return [value for value in values if isinstance(value, (int, float))]


def _words(points: Iterable[Point], key: str) -> str:
    found = dict.fromkeys(str(point.engine.get(key)) for point in points)
    return ', '.join(NONE if w == 'None' else plain(w) for w in sorted(found))


def machine_key(point: Point) -> tuple[Any, ...]:
    """What tells the machine of a point from others, versions included."""
    return tuple(point.machine.get(name) for name in _MACHINE)


def machine_table(summary: Summary) -> str:
    """A row for each machine, or version, that something was measured on."""
    machines: dict[tuple[Any, ...], list[Point]] = {}
    for point in summary.done:
        machines.setdefault(machine_key(point), []).append(point)
    rows = [[
        *(NONE if value is None else plain(value)
          for value in key),
        ', '.join(
            size
            for size in summary.sizes
            if any(point.size == size
                   for point in points)
        ),
        f'{len(points):,}',
    ]
            for key, points in machines.items()]
    head = [*_MACHINE.values(), 'sizes', 'points']
    return markdown_table(head, rows, n_left=len(head) - 1)


def prefix_cache_hits(summary: Summary) -> list[Point]:
    """What found tokens in the prefix cache, which is to be off."""
    return [
        point for point in summary.done
        if point.counters and point.counters.prefix_cache_hits
    ]
