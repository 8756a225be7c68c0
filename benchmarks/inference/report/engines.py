"""What the engine says of itself: memory, kernels, preemptions."""

from itertools import groupby
from typing import Any, Callable, Iterable, Optional

from benchmarks.inference.report.cells import NONE, end_of, markdown_table, span
from benchmarks.inference.report.records import Arm, Point
from benchmarks.inference.report.summary import Summary

__all__ = [
    'MACHINE',
    'core_names',
    'engine_table',
    'machine_key',
    'machine_table',
    'prefix_cache_hits',
]

_GIB = 2**30
# What tells one machine from another -> how the table calls it.
MACHINE = {
    'gpu': 'GPU',
    'n_gpus': 'GPUs',
    'driver': 'driver',
    'cuda': 'CUDA',
    'cpu': 'CPU',
    'cores': 'cores',
    'vllm': 'vLLM',
    'torch': 'torch',
}
_TUNED = {True: 'found', False: 'not found'}


def engine_table(summary: Summary, size: str) -> str:
    """A row for each model of a size, variants too."""
    head = [
        'model',
        'weights on one device (GiB)',
        'KV cache (tokens)',
        'preemptions',
        'K in the engine',
        'MoE kernel',
        'tuned configuration',
        'start (s)',
    ]
    if summary.devices_differ:
        head.insert(1, 'devices')
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
    devices = [str(summary.devices(size, arm))
              ] if summary.devices_differ else []
    return [
        summary.name(size, arm),
        *devices,
        span(weights, '.3g'),
        span(_numbers(points, 'kv_cache_tokens'), ',.0f'),
        f'{sum(preemptions):,}' if preemptions else NONE,
        _words(points, lambda p: p.engine.get('top_k_checked')),
        _words(points, lambda p: p.engine.get('moe_kernel')),
        _words(points, lambda p: _TUNED.get(p.engine.get('tuned_config'))),
        span(_numbers(points, 'start_seconds'), '.0f'),
    ]


def _numbers(points: Iterable[Point], key: str) -> list[float]:
    values = (point.engine.get(key) for point in points)
    return [value for value in values if isinstance(value, (int, float))]


def _words(points: Iterable[Point], take: Callable[[Point], Any]) -> str:
    """What points have, each once."""
    values = (take(point) for point in points)
    found = {NONE if value is None else end_of(value) for value in values}
    return ', '.join(sorted(found))


def core_names(point: Point) -> Optional[str]:
    """Cores that the engine computes on, as ``0-3 5``; None on GPUs."""
    cores = sorted(point.engine.get('cpu_cores') or ())
    # In a row of cores, each less its place is the same.
    places = groupby(enumerate(cores), lambda core: core[1] - core[0])
    ranges = [[core for _, core in of] for _, of in places]
    names = (
        str(of[0]) if len(of) == 1 else f'{of[0]}-{of[-1]}' for of in ranges
    )
    return ' '.join(names) or None


def machine_key(point: Point) -> tuple[Any, ...]:
    """What tells the machine of a point from others, versions included."""
    return tuple(point.machine.get(name) for name in MACHINE)


def machine_table(summary: Summary) -> str:
    """A row for each machine, or version, that something was measured on."""
    machines: dict[tuple[Any, ...], list[Point]] = {}
    for point in summary.done:
        machines.setdefault(machine_key(point), []).append(point)
    rows = [[
        *(NONE if value is None else end_of(value)
          for value in key),
        ', '.join(
            size
            for size in summary.sizes
            if any(point.size == size
                   for point in points)
        ),
        _words(points, core_names),
        span([point.devices
              for point in points], 'd'),
        f'{len(points):,}',
    ]
            for key, points in machines.items()]
    head = [
        *MACHINE.values(),
        'sizes',
        'computed on cores',
        'devices of a server',
        'points',
    ]
    return markdown_table(head, rows, n_left=len(head) - 2)


def prefix_cache_hits(summary: Summary) -> list[Point]:
    """What found tokens in the prefix cache, which is to be off."""
    return [
        point for point in summary.done
        if point.counters and point.counters.prefix_cache_hits
    ]
