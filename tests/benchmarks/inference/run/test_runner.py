"""``run/runner.py``, with a stand-in for vLLM."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Mapping

import pytest
from tiny_serving import REMOVED, StandIn, write_study

from benchmarks.inference.errors import HarnessError, SlowClientError
from benchmarks.inference.report.report import write_report
from benchmarks.inference.run.plan import describe_plan
from benchmarks.inference.run.runner import Runner
from benchmarks.inference.study.config import read_study
from benchmarks.inference.study.points import Point
from benchmarks.inference.study.servers import ServerSpec, list_servers
from benchmarks.inference.study.settings import Study

ROOT = Path(__file__).parents[4]

# Of the stand-in's dense server, 1.6 requests/s, and of its mixture, 0.6: both
# searches of 0.5, 1, 1.5 and 2 requests/s, in their order.
DENSE = ['0.5/s', '1/s', '1.5/s', '2/s', 'unbounded']
MOE = ['0.5/s', '1/s', '1.5/s', 'unbounded']


def study_in(folder: Path, *changes: tuple[str, Any]) -> Study:
    return read_study(
        write_study(
            folder,
            [
                ('folder', str(folder / 'out')),
                ('top_k', [2]),
                ('rates fine', 2),
                ('workload requests', 60),
                *changes,
            ],
        ),
    )


def run(
    folder: Path,
    stand_in: StandIn,
    *changes: tuple[str, Any],
    full_grid: bool = False,
) -> tuple[bool, list[str]]:
    lines: list[str] = []
    study = study_in(folder, *changes)
    return Runner(study, stand_in, full_grid, lines.append).run(), lines


def records(folder: Path) -> dict[str, Mapping[str, Any]]:
    """Labels such as ``dense 0.5 run 1`` -> point.json."""
    found = {}
    for path in (folder / 'out/points').glob('*/point.json'):
        record = json.loads(path.read_text())
        config = record['config']
        rate = config['rate'] or 'unbounded'
        label = f"{config['architecture']} {rate} run {config['run'] + 1}"
        found[label] = record
    return found


def labels(server: str, rates: list[str], n_run: int) -> list[str]:
    return [f'tiny {server} base {rate} run {n_run}' for rate in rates]


def test_everything_is_measured_once_and_in_turns(tmp_path: Path):
    stand_in = StandIn()
    is_complete, lines = run(tmp_path, stand_in)
    assert is_complete
    moe = 'moe E=8 K=2'
    # The second run has the rates of the first, not a search of its own.
    assert stand_in.events == [
        'start tiny dense base run 1',
        *labels('dense', DENSE, 1),
        'end tiny dense base run 1',
        f'start tiny {moe} base run 1',
        *labels(moe, MOE, 1),
        f'end tiny {moe} base run 1',
        f'start tiny {moe} base run 2',
        *labels(moe, MOE, 2),
        f'end tiny {moe} base run 2',
        'start tiny dense base run 2',
        *labels('dense', DENSE, 2),
        'end tiny dense base run 2',
    ]
    assert {record['status']
            for record in records(tmp_path).values()} == {
                'done',
            }
    assert lines[-1] == '18 points done, 0 remain'


def test_a_finished_study_is_not_run_again(tmp_path: Path):
    run(tmp_path, StandIn())
    again = StandIn()
    is_complete, lines = run(tmp_path, again)
    assert is_complete
    assert again.events == []
    assert lines == ['18 points done, 0 remain']


def test_more_runs_are_added(tmp_path: Path):
    run(tmp_path, StandIn())
    again = StandIn()
    assert run(tmp_path, again, ('runs', 3))[0]
    assert again.measured == [
        *labels('dense', DENSE, 3),
        *labels('moe E=8 K=2', MOE, 3),
    ]


def test_batches_without_a_limit_have_no_unbounded_rate(tmp_path: Path):
    stand_in = StandIn()
    is_complete, _ = run(
        tmp_path,
        stand_in,
        ('engine max_num_seqs', REMOVED),
        ('rates unbounded', False),
    )
    assert is_complete
    assert not [event for event in stand_in.events if 'unbounded' in event]


def test_full_grid(tmp_path: Path):
    run(tmp_path, StandIn())
    again = StandIn()
    assert run(tmp_path, again, full_grid=True)[0]
    assert again.measured == [
        *labels('moe E=8 K=2', ['2/s'], 1),
        *labels('moe E=8 K=2', ['2/s'], 2),
    ]
    # And a search finds there what it needs.
    again = StandIn()
    assert run(tmp_path, again)[0]
    assert again.events == []


def test_what_a_point_says(tmp_path: Path):
    run(tmp_path, StandIn())
    record = records(tmp_path)['moe 1.0 run 2']
    point = Point(list_servers(study_in(tmp_path))[1], 1.0, 1)
    assert record['format'] == 'foundry_upcycle/serving_point/2'
    assert record['id'] == point.id
    assert record['config'] == json.loads(json.dumps(point.config))
    assert (record['status'], record['reason']) == ('done', None)
    assert record['machine']['cpu'] == 'A CPU'
    assert record['labels'] == ['CPU', 'dummy weights']
    assert record['measured']['saturated']
    assert record['seconds'] >= 0


def test_the_report_reads_what_the_runner_writes(tmp_path: Path):
    stand_in = StandIn()
    stand_in.reasons['tiny moe E=8 K=2 eager'] = 'needs a GPU'
    run(tmp_path, stand_in, ('variants', ['base', 'eager']))
    report = write_report(tmp_path / 'out').read_text()
    assert 'needs a GPU' in report
    serving = json.loads((tmp_path / 'out/report/serving.json').read_text())
    throughput = {
        model['experts']: model['max_throughput_tokens_per_s']['mean']
        for model in serving['models']
    }
    # 1.6 and 0.6 requests/s of 20 tokens.
    assert throughput == pytest.approx({1: 32.0, 8: 12.0}, rel=0.02)


def test_a_failed_point_is_tried_again(tmp_path: Path):

    def fail_once(point: Point) -> None:
        if point.rate == 1.0 and point.run == 0 and point.server.is_dense:
            raise HarnessError('requests', 60, '3 of 60 failed.', 'read it.')

    is_complete, lines = run(tmp_path, StandIn(fail_once))
    assert not is_complete
    found = records(tmp_path)
    assert found['dense 1.0 run 1']['status'] == 'failed'
    assert found['dense 1.0 run 1']['reason'].startswith(
        'requests=60: 3 of 60 failed.',
    )
    # The search of the dense model waits; the rest is there.
    assert sorted(label for label in found if label.startswith('dense')) == [
        'dense 0.5 run 1',
        'dense 0.5 run 2',
        'dense 1.0 run 1',
        'dense unbounded run 1',
        'dense unbounded run 2',
    ]
    assert sum(label.startswith('moe') for label in found) == 8
    assert lines[-2:] == [
        'tiny dense base 1/s run 1: remains: requests=60: 3 of 60 failed. '
        'Fix: read it.',
        '12 points done, 1 remain',
    ]
    again = StandIn()
    assert run(tmp_path, again)[0]
    assert again.measured == [
        *labels('dense', ['1/s', '1.5/s', '2/s'], 1),
        *labels('dense', ['1/s', '1.5/s', '2/s'], 2),
    ]
    assert records(tmp_path)['dense 1.0 run 1']['status'] == 'done'


@pytest.mark.parametrize('n_slow, status', [(1, 'done'), (2, 'failed')])
def test_a_slow_client_has_a_second_try(
    tmp_path: Path,
    n_slow: int,
    status: str,
):
    left = [n_slow]

    def slow(point: Point) -> None:
        if point.rate == 1.0 and point.run == 0 and point.server.is_dense:
            left[0] -= 1
            if left[0] >= 0:
                raise SlowClientError('rate', 1.0, 'too slow.', 'wait.')

    is_complete, lines = run(tmp_path, StandIn(slow))
    assert is_complete == (status == 'done')
    assert records(tmp_path)['dense 1.0 run 1']['status'] == status
    once_more = [line for line in lines if ': once more: ' in line]
    assert once_more == [
        'tiny dense base 1/s run 1: once more: rate=1.0: too slow. Fix: wait.',
    ]


def test_a_server_that_does_not_start_stops_no_other(tmp_path: Path):
    stand_in = StandIn()
    stand_in.broken.add('tiny dense base')
    is_complete, lines = run(tmp_path, stand_in)
    assert not is_complete
    found = records(tmp_path)
    reasons = {
        label: record['reason']
        for label, record in found.items()
        if record['status'] == 'failed'
    }
    assert reasons == dict.fromkeys(
        ['dense 0.5 run 1', 'dense unbounded run 1', 'dense unbounded run 2'],
        "server='vllm': flag. Fix: correct it.",
    )
    assert sum(record['status'] == 'done' for record in found.values()) == 8
    assert lines[-1] == '8 points done, 3 remain'
    # Repaired, it is all there.
    again = StandIn()
    assert run(tmp_path, again)[0]
    assert again.measured == [
        *labels('dense', DENSE, 1),
        *labels('dense', DENSE, 2),
    ]


def test_a_server_that_dies_is_started_again(tmp_path: Path):

    def die(point: Point) -> None:
        if point.rate == 1.5 and point.run == 1 and point.server.is_dense:
            stand_in.is_dead = True
            raise HarnessError('requests', 60, 'no connection.', 'read it.')

    stand_in = StandIn(die)
    assert not run(tmp_path, stand_in)[0]
    assert stand_in.events[-7:] == [
        'start tiny dense base run 2',
        *labels('dense', ['0.5/s', '1/s'], 2),
        'end tiny dense base run 2',
        'start tiny dense base run 2',
        *labels('dense', ['2/s', 'unbounded'], 2),
        'end tiny dense base run 2',
    ][-7:]
    failed = records(tmp_path)['dense 1.5 run 2']
    # What killed the server, not the connection that was lost.
    assert failed['reason'] == "server='vllm': it died. Fix: read the log."


def test_an_error_nobody_thought_of_stops_no_other(tmp_path: Path):

    def fail(point: Point) -> None:
        if point.rate is None and point.server.is_dense:
            raise KeyError('start_times')

    stand_in = StandIn(fail)
    assert not run(tmp_path, stand_in)[0]
    found = records(tmp_path)
    reason = found['dense unbounded run 1']['reason']
    assert reason.startswith("KeyError('start_times')\nTraceback")
    assert "raise KeyError('start_times')" in reason
    assert found['moe unbounded run 2']['status'] == 'done'


def test_nor_does_one_while_a_server_starts(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    serve = StandIn.serve

    def fail(self: StandIn, server: ServerSpec, run: int):
        if server.is_dense:
            raise ValueError('half a config.json')
        return serve(self, server, run)

    monkeypatch.setattr(StandIn, 'serve', fail)
    assert not run(tmp_path, StandIn())[0]
    found = records(tmp_path)
    reason = found['dense unbounded run 1']['reason']
    assert reason.startswith("ValueError('half a config.json')\nTraceback")
    assert found['moe unbounded run 2']['status'] == 'done'


@pytest.mark.parametrize(
    ('key', 'value', 'then'),
    [('cores', 4, '2'), ('cpu_features', ('avx2', 'amx_tile'), r"\['avx2'\]"),
     ('vllm', '0.33.0', 'None')],
)
def test_another_machine_adds_nothing(
    tmp_path: Path,
    key: str,
    value: Any,
    then: str,
):
    run(tmp_path, StandIn())
    again = StandIn()
    again.machine = {**StandIn.machine, 'memory_gib': 23.5, key: value}
    with pytest.raises(
            HarnessError,
            match=rf'^machine.{key}=.* was measured with {then}: figures',
    ):
        run(tmp_path, again, ('runs', 3))
    assert again.events == []
    # Memory in use does not make it another one.
    again.machine = {**StandIn.machine, 'memory_gib': 23.5}
    assert run(tmp_path, again, ('runs', 3))[0]


def test_what_can_not_run_here_is_skipped(tmp_path: Path):
    stand_in = StandIn()
    stand_in.reasons['tiny moe E=8 K=2 base'] = 'needs a GPU'
    is_complete, lines = run(tmp_path, stand_in)
    assert is_complete
    skipped = {
        label: record['reason']
        for label, record in records(tmp_path).items()
        if record['status'] == 'skipped'
    }
    assert skipped == dict.fromkeys(
        ['moe 0.5 run 1', 'moe unbounded run 1', 'moe unbounded run 2'],
        'needs a GPU',
    )
    assert all('dense' in event for event in stand_in.events)
    assert 'tiny moe E=8 K=2 base 0.5/s run 1: skipped: needs a GPU' in lines
    # It stays so, until a machine has one.
    again = StandIn()
    again.reasons = stand_in.reasons
    assert run(tmp_path, again)[0]
    assert again.events == []
    again.reasons = {}
    assert run(tmp_path, again)[0]
    assert len(again.measured) == 8


@pytest.mark.parametrize('error', [SystemExit(143), KeyboardInterrupt()])
def test_an_end_in_the_middle_leaves_no_half_point(
    tmp_path: Path,
    error: BaseException,
):

    def end(point: Point) -> None:
        if point.rate == 1.5 and point.server.is_dense:
            raise error

    stand_in = StandIn(end)
    with pytest.raises(type(error)):
        run(tmp_path, stand_in)
    assert stand_in.events[-1] == 'end tiny dense base run 1'
    assert sorted(records(tmp_path)) == ['dense 0.5 run 1', 'dense 1.0 run 1']
    again = StandIn()
    is_complete, lines = run(tmp_path, again)
    assert is_complete
    assert again.measured[:3] == labels('dense', DENSE[2:], 1)
    assert len(again.measured) == 16
    assert lines[-1] == '18 points done, 0 remain'


SCRIPT = """
import sys, time
from pathlib import Path
from benchmarks.inference.engine.processes import exit_on_sigterm
from benchmarks.inference.run.runner import Runner
from benchmarks.inference.study.config import read_study
from tiny_serving import StandIn

def slow(point):
    if point.rate == 1.5:
        print('measures', flush=True)
        time.sleep(60)

with exit_on_sigterm():
    Runner(read_study(sys.argv[1]), StandIn(slow)).run()
"""


def test_sigterm_in_the_middle(tmp_path: Path):
    study_in(tmp_path)
    with subprocess.Popen(
        [sys.executable, '-c', SCRIPT, str(tmp_path / 'study.yaml')],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={'PYTHONPATH': f"{ROOT}:{ROOT / 'tests'}"},
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line == 'measures\n':
                break
        # Meanwhile nobody else may measure.
        with pytest.raises(
                HarnessError,
                match=rf'another runner works on it \(process {process.pid} ',
        ):
            run(tmp_path, StandIn())
        process.send_signal(signal.SIGTERM)
        started = time.monotonic()
        assert process.wait(timeout=30) == 143
        assert time.monotonic() - started < 10
    assert sorted(records(tmp_path)) == ['dense 0.5 run 1', 'dense 1.0 run 1']
    again = StandIn()
    assert run(tmp_path, again)[0]
    assert again.measured[:3] == labels('dense', DENSE[2:], 1)


def test_points_of_another_study_are_refused(tmp_path: Path):
    run(tmp_path, StandIn())
    stand_in = StandIn()
    with pytest.raises(
            HarnessError,
            match=r'it has [0-9a-f]{16}, measured with other settings than the '
            r'study has now. Fix: restore the settings, name another folder',
    ):
        run(tmp_path, stand_in, ('seed', 18))
    assert stand_in.events == []
    assert len(records(tmp_path)) == 18


def test_what_failed_with_other_settings_is_forgotten(tmp_path: Path):
    stand_in = StandIn()
    stand_in.broken |= {'tiny dense base', 'tiny moe E=8 K=2 base'}
    run(tmp_path, stand_in)
    assert len(records(tmp_path)) == 6
    (tmp_path / 'out/points/notes').mkdir()
    is_complete, lines = run(tmp_path, StandIn(), ('engine max_num_seqs', 4))
    assert is_complete
    assert [line[16:] for line in lines[:6]] == \
        [': removed: not done, of other settings'] * 6
    assert len(records(tmp_path)) == 18
    assert (tmp_path / 'out/points/notes').is_dir()


def test_a_damaged_point_is_named(tmp_path: Path):
    run(tmp_path, StandIn())
    path = next((tmp_path / 'out/points').glob('*/point.json'))
    path.write_text('{"format": "other/1"}')
    with pytest.raises(
            HarnessError,
            match=rf"point='{re.escape(str(path))}': it can't be read",
    ):
        run(tmp_path, StandIn())


def test_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr(
        'benchmarks.inference.run.runner.time.monotonic',
        lambda: float(next(clock)),
    )
    _, lines = run(tmp_path, StandIn(), ('runs', 1), ('rates stop', 1.0))
    assert lines == [
        'tiny dense base run 1: serves after 40 s',
        # 60 requests at 1/s; of the mixture 60 at 0.5/s, a start of 40 s and
        # perhaps one more rate, half of 10 s: 225 s.
        'tiny dense base 0.5/s run 1: 10 tokens/s, latency 0.62 s, keeps up; '
        '10 s, about 4 min left',
        'tiny dense base 1/s run 1: 20 tokens/s, latency 0.62 s, keeps up; '
        '10 s, about 3 min left',
        # The first that took longer than its arrivals, which are none.
        'tiny dense base unbounded run 1: 32 tokens/s, latency 19.06 s, '
        'saturated; 10 s, about 3 min left',
        'tiny moe E=8 K=2 base run 1: serves after 40 s',
        # 60 requests at 1/s, and 2 points of (0 + 0 + 10 + 0) / 4 s.
        'tiny moe E=8 K=2 base 0.5/s run 1: 10 tokens/s, latency 1.67 s, keeps '
        'up; 10 s, about 65 s left',
        'tiny moe E=8 K=2 base 1/s run 1: 12 tokens/s, latency 26.33 s, '
        'saturated; 10 s, about 2 s left',
        'tiny moe E=8 K=2 base unbounded run 1: 12 tokens/s, latency 50.83 s, '
        'saturated; 10 s, the last',
        '6 points done, 0 remain',
    ]


def test_plan_shows_what_is_done(tmp_path: Path):

    def fail(point: Point) -> None:
        if point.rate is None:
            raise HarnessError('requests', 60, 'failed.', 'read it.')

    run(tmp_path, StandIn(fail), ('runs', 1))
    study = study_in(tmp_path, ('runs', 1))
    lines = list(describe_plan(study))
    rows = [re.split(r'\s{2,}', line) for line in lines[1:lines.index('')]]
    assert [(row[2], row[5], row[8]) for row in rows] == [
        *[('dense', rate, 'done') for rate in DENSE[:-1]],
        ('dense', 'unbounded', 'failed'),
        *[('moe E=8', rate, 'done') for rate in MOE[:-1]],
        ('moe E=8', 'unbounded', 'failed'),
    ]
    assert len(lines) == len(rows) + 3
