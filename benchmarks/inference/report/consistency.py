"""Refuses points that can't stand in one figure."""

from typing import Any, Iterable, Sequence

from benchmarks.inference.errors import HarnessError
from benchmarks.inference.report.records import Point

__all__ = ['check_points', 'machine_name']

_LENGTHS = ('input_tokens', 'output_tokens')


def machine_name(point: Point) -> str:
    """What computed a point: its GPUs, or its CPU."""
    if _is_on_gpu(point):
        return f"GPU {point.machine.get('gpu')}"
    return f"CPU {point.machine.get('cpu')}"


def _is_on_gpu(point: Point) -> bool:
    """Whether there is one, and the engine is not built for CPUs."""
    is_cpu_build = str(point.machine.get('vllm')).endswith('+cpu')
    return bool(point.machine.get('gpu')) and not is_cpu_build


def check_points(points: Sequence[Point]) -> None:
    """Checks that points are of one study and can be compared.

    Args:
        points: All of a folder. What failed or was skipped is in no figure,
            so only its study counts.

    Raises:
        HarnessError: Some are of another study; a place was measured twice; of
            one size, lengths or routing differ, or of one variant of it the
            number of devices; some were measured on a GPU and some on a CPU, or
            one size on different ones.
    """
    _one_study(points)
    done = [point for point in points if point.status == 'done']
    _no_twins(done)
    _one_kind(done)
    for size in dict.fromkeys(point.size for point in done):
        of_size = [point for point in done if point.size == size]
        for key in _LENGTHS:
            _alike(of_size, f'config.workload.{key}', 'workload', key)
        # Of one variant or none; a dense model routes nothing.
        _alike(
            [point for point in of_size if not point.arm.is_dense],
            'config.routing',
            'routing',
        )
        _one_machine(of_size)
        _as_many_devices(of_size)


def _one_study(points: Sequence[Point]) -> None:
    first = points[0]
    for point in points:
        if point.study != first.study:
            raise HarnessError(
                f'{point.path}: config.study',
                point.study,
                f'{first.path} is of the study {first.study}.',
                'keep the points of each study in a folder of its own.',
            )


def _no_twins(points: Iterable[Point]) -> None:
    places: dict[Any, Point] = {}
    for point in points:
        place = (point.size, point.arm, point.rate, point.run)
        other = places.setdefault(place, point)
        if other is not point:
            differ = sorted(
                key for key in {*point.config, *other.config}
                if point.config.get(key) != other.config.get(key)
            )
            raise HarnessError(
                f'{point.path}: id',
                point.id,
                f'{other.id} has the same size, model, rate and run, and '
                f"another {', '.join(differ)}: the study was changed.",
                'remove the folder of the one that is not meant.',
            )


def _alike(points: Sequence[Point], name: str, *keys: str) -> None:
    for point in points:
        value, expected = point.config, points[0].config
        for key in keys:
            value, expected = value.get(key, {}), expected.get(key, {})
        if value != expected:
            raise HarnessError(
                f'{point.path}: {name}',
                value,
                f'of the same size, {points[0].path} has {expected!r}.',
                'compare nothing but alike: keep them in studies of their own.',
            )


def _as_many_devices(points: Sequence[Point]) -> None:
    """Of points of one size: those of a variant are spread over as many."""
    first: dict[str, Point] = {}
    for point in points:
        other = first.setdefault(point.arm.variant, point)
        if point.devices != other.devices:
            raise HarnessError(
                f'{point.path}: engine.devices',
                point.devices,
                f'of the same size and variant, {other.path} has '
                f'{other.devices}.',
                'compare nothing but alike: keep them in studies of their own.',
            )


def _one_kind(points: Sequence[Point]) -> None:
    """No figure has GPUs and CPUs, not even with a size each."""
    first = {_is_on_gpu(point): point for point in points[::-1]}
    if len(first) > 1:
        _refuse_machines(first[False], first[True])


def _one_machine(points: Sequence[Point]) -> None:
    for point in points:
        if machine_name(point) != machine_name(points[0]):
            _refuse_machines(points[0], point)


def _refuse_machines(point: Point, other: Point) -> None:
    raise HarnessError(
        f'{other.path}: machine',
        machine_name(other),
        f'{point.path} was measured on {machine_name(point)}: what differs '
        'may be the machine.',
        'keep the points of each machine in a folder of its own.',
    )
