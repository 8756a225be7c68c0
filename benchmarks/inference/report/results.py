"""Reads what a serving study measured: one ``point.json`` for each point."""

from pathlib import Path
from typing import Any, Mapping, Optional

from benchmarks.inference.errors import HarnessError
from benchmarks.inference.point_format import POINT_FORMAT
from benchmarks.inference.report.fields import Fields, read_record
from benchmarks.inference.report.records import (
    Arm,
    Counters,
    Measured,
    Point,
    Requests,
)

__all__ = ['read_arm', 'read_points']

_STATUSES = ('done', 'failed', 'skipped')
_ARCHITECTURES = ('dense', 'moe')


def read_points(folder: Path) -> list[Point]:
    """Reads the points of a study.

    Args:
        folder: Of the study: points are in ``points/<id>/point.json``.

    Returns:
        All that were begun, in order of their ids.

    Raises:
        HarnessError: There are none, or one can't be read, is damaged, or of
            another version's format.
    """
    paths = sorted((folder / 'points').glob('*/point.json'))
    if not paths:
        raise HarnessError(
            'folder',
            str(folder),
            'there is no points/*/point.json in it.',
            'measure with `python -m benchmarks.inference run STUDY.yaml`.',
        )
    return [_read(path) for path in paths]


def _read(path: Path) -> Point:
    fields = read_record(
        path,
        'point',
        POINT_FORMAT,
        'remove its folder, so that `run` measures the point again.',
    )
    if fields.text('id') != path.parent.name:
        fields.refuse(
            'id',
            f'its folder is {path.parent.name}.',
            'a folder bears the id of its point: name it so.',
        )
    status = fields.text('status')
    if status not in _STATUSES:
        fields.refuse('status', f"it is none of {', '.join(_STATUSES)}.")
    return _point(path, fields, status)


def _point(path: Path, fields: Fields, status: str) -> Point:
    config, done = fields.inner('config'), status == 'done'
    config.inner('workload')
    given = fields.content
    return Point(
        path=path,
        id=fields.text('id'),
        study=config.text('study'),
        size=config.text('size'),
        arm=read_arm(config),
        rate=_rate(config),
        run=config.count('run'),
        status=status,
        reason=None if done else fields.text('reason'),
        labels=_labels(fields),
        config=config.content,
        machine=fields.inner('machine').content
        if done else given.get('machine') or {},
        engine=_engine(fields.inner('engine'))
        if done else given.get('engine') or {},
        requests=_requests(fields.inner('requests')) if done else None,
        measured=_measured(fields) if done else None,
        counters=_counters(fields.inner('counters')) if done else None,
        shares=_shares(fields) if done else None,
        seconds=fields.optional_number('seconds'),
    )


def _rate(config: Fields) -> Optional[float]:
    rate = config.optional_number('rate')
    # Three steps of 0.1 are 0.3, whatever they were added up to.
    return None if rate is None else round(rate, 9)


def read_arm(config: Fields) -> Arm:
    """What a config says that is served."""
    architecture = config.text('architecture')
    if architecture not in _ARCHITECTURES:
        config.refuse('architecture', 'it is neither dense nor moe.')
    variant = config.text('variant')
    name = '' if config.is_null('name') else config.text('name')
    if architecture == 'dense':
        return Arm(1, 1, variant, name)
    experts, top_k = config.count('experts', 2), config.count('top_k', 1)
    arm = Arm(experts, top_k, variant, name)
    if arm.top_k > arm.experts:
        config.refuse('top_k', f'there are {arm.experts} experts.')
    return arm


def _labels(fields: Fields) -> tuple[str, ...]:
    for label in fields.array('labels'):
        if not isinstance(label, str) or not label.strip():
            fields.refuse('labels', f'{label!r} is no text.')
    return tuple(fields.array('labels'))


def _engine(fields: Fields) -> Mapping[str, Any]:
    fields.count('devices', 1)
    return fields.content


def _requests(fields: Fields) -> Requests:
    names = ('start', 'end', 'ttft', 'input_tokens', 'output_tokens')
    columns = {name: fields.numbers(name) for name in names}
    n_requests = len(columns['start'])
    if n_requests == 0:
        fields.refuse('start', 'there is no request.')
    for name, column in columns.items():
        if len(column) != n_requests:
            fields.refuse(
                name,
                f'it has {len(column)} requests, start has {n_requests}.',
            )
    for index, start in enumerate(columns['start']):
        if columns['end'][index] < start:
            fields.refuse('end', f'request {index} ends before it starts.')
    tokens = zip(columns['input_tokens'], columns['output_tokens'])
    return Requests(
        columns['start'],
        columns['end'],
        columns['ttft'],
        tuple(sum(of_request) for of_request in tokens),
    )


def _measured(point: Fields) -> Measured:
    fields, tool = point.inner('measured'), point.inner('tool')
    for key in ('throughput_tokens_per_s', 'latency_mean_s'):
        if fields.number(key) <= 0:
            fields.refuse(key, 'it is not above 0.')
    starts = point.inner('requests').numbers('start')
    if min(starts) + fields.number('steady_from_s', 0) > max(starts):
        fields.refuse('steady_from_s', 'no request starts so late.')
    return Measured(
        offered=fields.optional_number('offered'),
        achieved=fields.optional_number('achieved'),
        throughput=fields.number('throughput_tokens_per_s'),
        whole_run=tool.optional_number('total_token_throughput'),
        latency=fields.number('latency_mean_s'),
        saturated=fields.flag('saturated'),
        steady_from=fields.number('steady_from_s', 0),
    )


def _counters(fields: Fields) -> Counters:
    names = Counters.__dataclass_fields__
    return Counters(**{name: fields.optional_count(name) for name in names})


def _shares(fields: Fields) -> Optional[tuple[tuple[float, ...], ...]]:
    if not fields.content.get('expert_load'):
        return None
    load = fields.inner('expert_load')
    layers = load.array('shares')
    rows = [
        Fields(load.source, f'{load.prefix}shares.', {
            str(index): layer
        }).numbers(str(index)) for index, layer in enumerate(layers)
    ]
    if not rows or len({len(row) for row in rows}) > 1 or not rows[0]:
        load.refuse('shares', 'layers have different numbers of experts.')
    for index, row in enumerate(rows):
        if min(row) < 0 or abs(sum(row) - 1) > 1e-3:
            load.refuse('shares', f'layer {index} does not add up to 1.')
    return tuple(rows)
