"""Shows what a study measures, before it is measured."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, Iterator, Optional, Sequence

from benchmarks.inference.engine.models import check_model_folder
from benchmarks.inference.errors import HarnessError
from benchmarks.inference.run.schedule import Schedule
from benchmarks.inference.run.store import Store
from benchmarks.inference.study.points import Point, rounds
from benchmarks.inference.study.servers import (
    ServerSpec,
    list_servers,
    model_bytes_of,
)
from benchmarks.inference.study.settings import Study
from benchmarks.inference.text_table import text_table

__all__ = ['describe_plan', 'describe_servers']

_HEADER = (
    'point',
    'size',
    'model',
    'K',
    'variant',
    'rate',
    'run',
    'requests',
    'state',
)


def describe_plan(study: Study, full_grid: bool = False) -> Iterator[str]:
    """Lines: a table of points, then what depends on a search, and sums.

    Args:
        study: The study. What is measured already counts.
        full_grid: Whether all rates are measured, without a search.

    Raises:
        HarnessError: The study's models or variants can't be used, or a point
            can't be read.
    """
    servers, store = list_servers(study), Store(study.folder)
    schedule = Schedule(study, servers, store, full_grid)
    points = [
        point for server, run in rounds(study, servers)
        for point in schedule.points(server, run)
    ]
    yield from text_table([
        _HEADER, *(_cells(point, store.status(point)) for point in points)
    ])
    yield ''
    n_low = n_high = len(points)
    for server in servers:
        unknown = [schedule.unknown(server, run) for run in range(study.runs)]
        n_low += sum(low for low, _ in unknown)
        n_high += sum(high for _, high in unknown)
        low, high = unknown[0]
        if high:
            rates = server.size.rates
            yield (
                f'{server.label}: the first run searches the knee, {low} to '
                f'{high} more rates of {rates.grid[0]:g} to '
                f'{rates.grid[-1]:g}/s; the other runs have the same rates.'
            )
    yield from _quality(schedule, servers, store)
    yield _sums(study, len(servers), points, (n_low, n_high))


def _quality(
    schedule: Schedule,
    servers: Sequence[ServerSpec],
    store: Store,
) -> Iterator[str]:
    """A line on what asks for quality, where the study does."""
    probes = [p for server in servers for p in schedule.probes(server, 0)]
    n_done = sum(store.status(probe) == 'done' for probe in probes)
    if probes:
        yield (
            f'quality: {len(probes)} servers are asked in the first run, of '
            f'which {n_done} were.'
        )


def _cells(point: Point, status: object) -> tuple[str, ...]:
    server = point.server
    model = 'dense' if server.is_dense else f'moe E={server.experts}'
    if server.name is not None:
        model = f'{server.name} {model}'
    rate = 'unbounded' if point.rate is None else f'{point.rate:g}/s'
    return (
        point.id,
        server.size.name,
        model,
        str(server.top_k),
        server.variant,
        rate,
        str(point.run + 1),
        str(point.n_requests),
        str(status or 'to do'),
    )


def _sums(
    study: Study,
    n_servers: int,
    points: Sequence[Point],
    n_points: tuple[int, int],
) -> str:
    low, high = n_points
    number = f'{low}' if low == high else f'{low} to {high}'
    minutes = sum(point.seconds_of_arrivals for point in points) / 60
    return (
        f'{study.name}: {n_servers} servers in {study.runs} runs, {number} '
        f'points. Those above are {len(points)}, of '
        f'{sum(point.n_requests for point in points)} requests that arrive '
        f'over {minutes:.0f} min; starting servers and the load comes on top.'
    )


def describe_servers(study: Study) -> Iterator[dict[str, Any]]:
    """Of each server what doctor.py needs to know.

    Raises:
        HarnessError: The study's models or variants can't be used.
    """
    for server in list_servers(study):
        yield {
            'label': server.label,
            'architecture': server.architecture,
            'variant': server.variant,
            'load_format': study.load_format,
            'weight_bytes': model_bytes_of(server),
            'engine': asdict(server.size.engine),
            'greedy': server.size.workload.greedy,
            'problem': _problem(server),
        }


def _problem(server: ServerSpec) -> Optional[str]:
    """Why real weights can't be served; None: they can, or are dummies."""
    if isinstance(server.model, Path):
        try:
            check_model_folder(server.model)
        except HarnessError as error:
            return str(error)
    return None
