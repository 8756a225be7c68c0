"""``report/results.py``, ``fields.py``: reading points, refusing damage."""

import json
from pathlib import Path
from typing import Any

import pytest
from serving_study import write_point

from benchmarks.inference.errors import HarnessError
from benchmarks.inference.report.records import Arm
from benchmarks.inference.report.results import read_points


def change(path: Path, keys: str, value: Any) -> None:
    """Sets a field of a point.json, named as errors name it."""
    content = json.loads(path.read_text())
    *outer, last = keys.split('.')
    record = content
    for key in outer:
        record = record[key]
    record[last] = value
    path.write_text(json.dumps(content))


def test_a_point_is_read(tmp_path: Path):
    write_point(
        tmp_path,
        8,
        2,
        0.1 + 0.2,
        3,
        variant='fp8',
        throughput=50.0,
        latency=4.0,
        counters={'preemptions': 5},
        expert_load={'shares': [[0.25] * 4]},
    )
    point, = read_points(tmp_path)
    assert (point.size, point.study, point.run) == ('430m', 'cpu', 3)
    assert point.arm == Arm(8, 2, 'fp8')
    assert point.arm.base == Arm(8, 2)
    assert point.rate == 0.3
    assert point.status == 'done'
    assert point.labels[0] == 'CPU'
    assert point.requests and point.measured and point.counters
    assert point.requests.latency == (4.0, ) * 12
    assert point.requests.tokens == (100.0, ) * 12
    assert point.measured.throughput == 50.0
    assert point.measured.whole_run == 45.0
    assert point.measured.steady_from == 0
    assert point.devices == 1
    assert point.counters.preemptions == 5
    assert point.counters.spec_drafted is None
    assert point.shares == ((0.25, 0.25, 0.25, 0.25), )


def test_dense_ones_have_one_expert(tmp_path: Path):
    write_point(tmp_path, config={'experts': None, 'top_k': None})
    assert read_points(tmp_path)[0].arm == Arm(1, 1)
    assert read_points(tmp_path)[0].arm.is_dense


def test_what_is_not_done_needs_no_results(tmp_path: Path):
    path = write_point(tmp_path, status='failed', reason='it died.')
    content = json.loads(path.read_text())
    for key in ('requests', 'measured', 'counters', 'engine', 'tool'):
        del content[key]
    path.write_text(json.dumps(content))
    point, = read_points(tmp_path)
    assert (point.status, point.reason) == ('failed', 'it died.')
    assert point.measured is None


def test_no_points_are_refused(tmp_path: Path):
    with pytest.raises(
            HarnessError,
            match=r'folder=.*no points/\*/point.json in it. Fix: measure with',
    ):
        read_points(tmp_path)


@pytest.mark.parametrize('content', ['{"format": ', '\xff'])
def test_damaged_files_are_refused(tmp_path: Path, content: str):
    path = write_point(tmp_path)
    path.write_bytes(content.encode('latin-1'))
    with pytest.raises(
            HarnessError,
            match=r"point='.*/point.json': it can't be read as JSON",
    ):
        read_points(tmp_path)


def test_a_list_is_no_point(tmp_path: Path):
    write_point(tmp_path).write_text('[]')
    with pytest.raises(
            HarnessError,
            match=r'point.json: content=\[\]: it is not a JSON object',
    ):
        read_points(tmp_path)


@pytest.mark.parametrize(
    ('keys', 'value', 'problem'),
    [
        ('format', 'foundry_upcycle/serving_point/1', 'this version reads'),
        ('id', '0123456789abcdef', 'its folder is'),
        ('status', 'running', 'it is none of done, failed, skipped'),
        ('labels', ['CPU', ' '], "' ' is no text"),
        ('config', None, 'it is not a JSON object'),
        ('config.size', '', 'it is not a text'),
        ('config.run', 0.5, 'it is not a whole number'),
        ('config.run', -1, 'it is less than 0'),
        ('config.rate', 'inf', 'it is not a finite number'),
        ('config.architecture', 'hybrid', 'neither dense nor moe'),
        ('config.experts', 1, 'it is less than 2'),
        ('config.top_k', 9, 'there are 8 experts'),
        ('config.workload', None, 'it is not a JSON object'),
        ('requests.ttft', 3, 'it is not a list'),
        ('requests.ttft', [1.0, None], 'number 1 of it is None'),
        ('requests.ttft', [1.0], 'it has 1 requests, start has 12'),
        ('requests.start', [], 'there is no request'),
        ('requests.end', [2.0] * 12, 'request 2 ends before it starts'),
        ('measured.throughput_tokens_per_s', 0, 'it is not above 0'),
        ('measured.latency_mean_s', True, 'it is not a finite number'),
        ('measured.latency_mean_s', float('nan'), 'it is not a finite number'),
        ('measured.saturated', None, 'it is neither true nor false'),
        ('tool', None, 'it is not a JSON object'),
        ('measured.steady_from_s', None, 'it is not a finite number'),
        ('measured.steady_from_s', -0.1, 'it is less than 0'),
        ('measured.steady_from_s', 22.1, 'no request starts so late'),
        ('engine.devices', None, 'it is not a finite number'),
        ('engine.devices', 0, 'it is less than 1'),
        ('counters.preemptions', -1, 'it is less than 0'),
        ('expert_load.shares', [[0.5, 0.5], [1.0]], 'different numbers'),
        ('expert_load.shares', [[0.5, 0.6]], 'layer 0 does not add up to 1'),
        ('expert_load.shares', [[1.5, -0.5]], 'layer 0 does not add up to 1'),
        ('expert_load.shares', [[0.5, 'x']], "number 1 of it is 'x'"),
    ],
)
def test_each_field_is_checked(
    tmp_path: Path,
    keys: str,
    value: Any,
    problem: str,
):
    path = write_point(tmp_path, 8, 2, expert_load={'shares': [[1.0]]})
    change(path, keys, value)
    with pytest.raises(HarnessError,
                       match=f'{keys}.*{problem}.* Fix: ') as error:
        read_points(tmp_path)
    assert str(path) in str(error.value)


def test_errors_do_not_print_long_lists(tmp_path: Path):
    path = write_point(tmp_path)
    change(path, 'requests.ttft', list(range(1000)))
    with pytest.raises(HarnessError, match="ttft='1000 values': it has 1000"):
        read_points(tmp_path)
