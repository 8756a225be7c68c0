"""``benchmarks/inference/report``: what it writes."""

import csv
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from rendered import ODD, TAGS, Rendered
from serving_study import (
    CPU,
    GPU,
    LABELS,
    one_by_one,
    simulate_study,
    write_point,
)

from benchmarks.inference.errors import HarnessError
from benchmarks.inference.report.cells import end_of, markdown_table, span
from benchmarks.inference.report.figures import draw_figures
from benchmarks.inference.report.html import to_html
from benchmarks.inference.report.report import write_report
from benchmarks.inference.report.results import read_points
from benchmarks.inference.report.summary import Summary
from foundry_upcycle.study.report.serving import read_serving

LABELLED = f"({', '.join(LABELS)})"
OF_SIZE = (
    'latency',
    'rates',
    'percentiles',
    'experts',
    'speculation',
    'variants',
)


@pytest.fixture(scope='module')
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of simulated queues, reported."""
    folder = tmp_path_factory.mktemp('study')
    simulate_study(folder)
    write_report(folder)
    return folder


def report(folder: Path) -> str:
    return write_report(folder).read_text()


def tables(text: str, title: str) -> list[list[str]]:
    """Rows of the first table under a heading, without its head."""
    mark = '\n### ' if f'\n### {title}' in text else '\n## '
    lines = text.split(f'{mark}{title}')[1].splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith('|'))
    rows = []
    for line in lines[first + 2:]:
        if not line.startswith('|'):
            break
        cells = re.split(r'(?<!\\)\|', line)[1:-1]
        rows.append([cell.strip() for cell in cells])
    return rows


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob('*')
        if path.is_file()
    }


def test_all_is_there(study: Path):
    figures = {f'{kind}_{s}' for kind in OF_SIZE for s in ('430m', '1b')}
    assert set(files(study / 'report')) == {
        'report.md',
        'report.html',
        'points.csv',
        'serving.json',
        *(
            f'figures/{name}.{kind}' for name in {*figures, 'throughput'}
            for kind in ('png', 'svg')
        ),
    }
    # And nothing beside it.
    assert {path.name for path in study.iterdir()} == {'points', 'report'}


def test_written_twice_it_is_the_same(study: Path):
    before = files(study / 'report')
    write_report(study)
    assert files(study / 'report') == before


def test_the_queues_capacities_are_found(study: Path):
    # 576 tokens a request; capacities of 1, 0.66 and 0.52 requests/s.
    text = (study / 'report/report.md').read_text()
    rows = tables(text, 'Maximum throughput')
    means = [float(row[3].split()[0]) for row in rows]
    assert means == pytest.approx([576, 380, 300], rel=0.05)
    assert rows[1][-2:] == ['33,820', '42%']
    drops = [float(row[4].split('%')[0]) for row in rows[1:]]
    assert drops == pytest.approx([34, 48], abs=2)


def test_training_reads_serving_json(study: Path):
    serving = read_serving(study / 'report/serving.json')
    assert serving.labels == tuple(LABELS)
    assert set(serving.models) == {(size, *arm)
                                   for size in ('430m', '1b')
                                   for arm in ((1, 1), (8, 1), (8, 2))}
    cost = serving.cost('1b', 8, 2)
    assert cost and cost.low < 1 / 0.52 < cost.high


def test_a_single_run_is_labelled(tmp_path: Path):
    write_point(tmp_path, rate=None, throughput=800.0)
    write_report(tmp_path)
    serving = read_serving(tmp_path / 'report/serving.json')
    assert serving.labels == (*LABELS, 'one run, no interval')
    found = serving.models['430m', 1, 1]
    assert (found.low, found.mean, found.high) == (800, 800, 800)


def test_what_has_no_bound_is_no_cost(tmp_path: Path):
    # Mean 550, t(0.975, 1) = 12.7 times an error of 450: below 0.
    for run, throughput in enumerate((100.0, 1000.0)):
        write_point(tmp_path, rate=None, run=run, throughput=throughput)
        write_point(tmp_path, 8, 2, rate=None, run=run, throughput=500.0 + run)
    text = report(tmp_path)
    assert 'The interval of dense reaches down to 0' in text
    serving = read_serving(tmp_path / 'report/serving.json')
    assert set(serving.models) == {('430m', 8, 2)}


def test_a_line_for_each_point(study: Path):
    with (study / 'report/points.csv').open() as file:
        rows = {row['id']: row for row in csv.DictReader(file)}
    points = {path.parent.name for path in study.glob('points/*/point.json')}
    assert set(rows) == points
    for point_id, row in rows.items():
        path = study / 'points' / point_id / 'point.json'
        record = json.loads(path.read_text())
        assert row['status'] == record['status']
        if record['status'] == 'done':
            measured = record['measured']
            assert float(row['latency']) == measured['latency_mean_s']
            assert float(row['latency_p99_s']) > 0
        else:
            assert row['latency'] == ''
            assert row['reason'] == record['reason']


def test_what_is_not_there_is_told_by_name(study: Path):
    text = (study / 'report/report.md').read_text()
    assert (
        '**Not all points are there**: 1 failed and 14 skipped, beside 252 '
        'that are done.'
    ) in text
    failed, *skipped = tables(text, 'Points that are not there')
    assert failed[:2] == ['failed', '430m, K=2']
    assert re.fullmatch(r'0\.9, run 1 \(`[0-9a-f]{16}`\)', failed[2])
    assert failed[3] == (
        r'server="vllm serve": it died. RuntimeError: no \<memory\> \| !'
    )
    assert skipped == [[
        'skipped', f'{size}, K=2, fp8_experts', '7 points', 'it needs a GPU.'
    ] for size in ('1b', '430m')]


def test_variants_are_the_last_table(study: Path):
    text = (study / 'report/report.md').read_text()
    rows = tables(text, 'Variants: the gap to dense they close')
    assert text.rstrip().endswith('| ' + ' | '.join(rows[-1]) + ' |')
    assert [row[:3] for row in rows] == [
        *([size, *row] for size in ('430m', '1b') for row in (
            ['lower K', 'K=1'],
            ['compiled', 'K=2'],
            ['ngram', 'K=2'],
            ['tensor_parallel_2', 'K=2'],
        )),
        ['1b', 'fp8_experts', 'K=2'],
        ['430m', 'fp8_experts', 'K=2'],
    ]
    assert rows[-1][-1] == 'skipped: it needs a GPU.'
    # (0.62 - 0.52) / (1 - 0.52), and (3.0 - 3.6) / (2.0 - 3.6) s at low load.
    compiled = rows[1]
    assert float(compiled[5].split('%')[0]) == pytest.approx(21, abs=4)
    assert float(compiled[4].split('%')[0]) == pytest.approx(37.5, abs=3)
    assert compiled[4].endswith('at 0.1/s')
    # (0.88 / 2 - 0.52) / (1 - 0.52), and (2.4 - 3.6) / (2.0 - 3.6) s.
    parallel = rows[3]
    assert parallel[3] == '2, base 1'
    assert float(parallel[5].split('%')[0]) == pytest.approx(-17, abs=4)
    assert float(parallel[4].split('%')[0]) == pytest.approx(75, abs=3)


def test_every_title_and_caption_is_labelled(study: Path):
    text = (study / 'report/report.md').read_text()
    assert text.splitlines()[0].endswith(LABELLED)
    page = (study / 'report/report.html').read_text()
    assert f'<title>Serving study cpu {LABELLED}</title>' in page
    for drawing in draw_figures(Summary(read_points(study)), {}):
        assert drawing.caption.endswith(f'{LABELLED}.'), drawing.name
        assert f'\n{LABELLED}' in ''.join(_titles(drawing.figure))


def _titles(figure: Figure) -> list[str]:
    return [
        figure.get_suptitle(),
        *(axes.get_title() for axes in figure.axes),
    ]


def test_figures_have_units_on_their_axes(study: Path):
    units = r'\((s|%|.*per second.*|1 = .*)\)|^(expert|layer'
    units += r'|share of requests|.*per second|accepted share of draft tokens|)$'
    for drawing in draw_figures(Summary(read_points(study)), {}):
        for axes in drawing.figure.axes:
            for label in (axes.get_xlabel(), axes.get_ylabel()):
                assert re.search(units, label), (drawing.name, label)


def test_the_page_opens_offline(study: Path):
    page = (study / 'report/report.html').read_text()
    sources = re.findall(r'src="([^"]*)"', page)
    assert len(sources) == 13
    assert all(s.startswith('data:image/svg+xml;base64,') for s in sources)
    assert '<memory>' not in page


def test_a_page_needs_its_images():
    with pytest.raises(ValueError, match="'a.png' is no image of the report"):
        to_html('![a](a.png)', 'A', {})


def test_measures_that_differ_are_told(tmp_path: Path):
    for rate, throughput in ((2.0, 1000.0), (None, 1060.0)):
        write_point(tmp_path, rate=rate, throughput=throughput, saturated=True)
    text = report(tmp_path)
    assert (
        '**The two measures of dense differ by 6.0%**: with all requests at '
        'once it serves more than at saturated rates.'
    ) in text


def test_so_are_those_that_differ_the_other_way_round(tmp_path: Path):
    for rate, throughput in ((2.0, 1000.0), (None, 1250.0)):
        write_point(tmp_path, rate=rate, throughput=throughput, saturated=True)
    # It has no plateau, so both are compared at the unbounded rate.
    write_point(tmp_path, 8, 2, rate=None, throughput=900.0, saturated=True)
    assert (
        '**The two measures of dense differ by 20.0%**: with all requests at '
        'once it serves more than at saturated rates.'
    ) in report(tmp_path)


def test_measures_that_agree_are_not(tmp_path: Path):
    for rate, throughput in ((2.0, 1000.0), (None, 1049.0)):
        write_point(tmp_path, rate=rate, throughput=throughput, saturated=True)
    assert 'The two measures' not in report(tmp_path)


def test_latency_of_saturated_rates_is_not_told(tmp_path: Path):
    write_point(tmp_path, rate=1.0, latency=2.0)
    write_point(tmp_path, rate=2.0, latency=7.5, saturated=True)
    write_point(tmp_path, rate=None, latency=9.5)
    rows = tables(report(tmp_path), 'Rates')
    assert [(row[1], row[-2], row[-1]) for row in rows] == [
        ('1', '2.000 (n/a)', 'no'),
        ('2', '-', '1 of 1'),
        ('unbounded', '-', 'by design'),
    ]


def test_never_saturated_is_a_lower_bound(tmp_path: Path):
    write_point(tmp_path, rate=2.0, throughput=1000.0, saturated=True)
    write_point(tmp_path, 8, 2, rate=2.0, throughput=990.0)
    text = report(tmp_path)
    assert tables(text, 'Maximum throughput')[1][:5] == [
        'K=2',
        '-',
        'at least 990',
        '-',
        'never saturated',
    ]
    assert '- 430m: no drop yet' in text
    assert 'There is no rate that all models were measured at' in text


def test_memory_and_engine(tmp_path: Path):
    write_point(
        tmp_path,
        8,
        2,
        engine={
            'weight_bytes': 3 * 2**30,
            'tuned_config': True,
            'moe_kernel': 'Triton|x',
        },
        counters={'preemptions': 2},
    )
    write_point(
        tmp_path,
        8,
        2,
        rate=2.0,
        engine={
            'weight_bytes': 3 * 2**30,
            'kv_cache_tokens': 90_000,
            'moe_kernel': 'Triton|x',
        },
        counters={'preemptions': 1},
    )
    row, = tables(report(tmp_path), 'Memory and engine')
    assert row == [
        'K=2',
        '3',
        '90,000 to 95,232',
        '3',
        '2',
        r'Triton\|x',
        'found, not found',
        '38',
    ]


@pytest.mark.parametrize(
    ('changes', 'warning'),
    [
        (
            {
                'counters': {
                    'prefix_cache_hits': 16
                }
            },
            'Prompts were found in the prefix cache',
        ),
        ({
            'machine': {
                **CPU, 'vllm': '0.33.0'
            }
        }, 'Measured on 2 machines or versions'),
    ],
)
def test_what_must_be_known_first(
    tmp_path: Path,
    changes: dict[str, Any],
    warning: str,
):
    write_point(tmp_path)
    write_point(tmp_path, run=1, **changes)
    assert f'**{warning}' in report(tmp_path).split('\n- ')[0]


def test_machines_are_told_with_their_drivers(tmp_path: Path):
    write_point(tmp_path, machine=GPU, engine={'cpu_cores': None})
    row, = tables(report(tmp_path), 'What was measured, and on what')
    assert row == [
        'NVIDIA H100',
        '1',
        '580.65.06',
        '12.8',
        'A CPU',
        '2',
        '0.32.0',
        '2.9',
        '430m',
        '-',
        '1',
        '1',
    ]


def test_cores_and_devices_are_told(tmp_path: Path):
    write_point(tmp_path, engine={'cpu_cores': [6, 1, 0, 2, 4]})
    write_point(tmp_path, 8, 2, variant='two', engine={'devices': 2})
    row, = tables(report(tmp_path), 'What was measured, and on what')
    assert row[-3:] == ['0-1, 0-2 4 6', '1 to 2', '2']


def test_devices_are_told_where_they_differ(tmp_path: Path):
    for variant, devices, throughput in (('base', 1, 500.0), ('two', 2, 800.0)):
        for experts, top_k in ((1, 1), (8, 2)):
            write_point(
                tmp_path,
                experts,
                top_k,
                None,
                variant=variant,
                throughput=throughput * (2 if experts == 1 else 1),
                engine={'devices': devices},
            )
    text = report(tmp_path)
    assert [row[:4] for row in tables(text, 'Maximum throughput')] == [
        ['dense', '1', '1', '1,000 (n/a)'],
        ['K=2', '1', '1', '500 (n/a)'],
    ]
    assert [row[:2] for row in tables(text, 'Memory and engine')] == [
        ['dense', '1'],
        ['K=2', '1'],
        ['dense, two', '2'],
        ['K=2, two', '2'],
    ]
    # (800 / 2 - 500) / (1000 - 500); 1 - 800 / 1600.
    assert tables(text, 'Variants: the gap to dense they close') == [[
        '430m',
        'two',
        'K=2',
        '2, base 1',
        '-',
        '-20% (n/a), unbounded rate',
        '50.0% (n/a)',
        '',
    ]]
    assert '| gap closed in throughput per device, at saturation |' in text
    assert 'Throughput is that of each device where' in text
    drawing, = (
        drawing for drawing in draw_figures(Summary(read_points(tmp_path)), {})
        if drawing.name == 'variants_430m'
    )
    assert 'of maximum throughput per device.' in drawing.caption
    names = [
        text.get_text() for text in drawing.figure.axes[0].get_yticklabels()
    ]
    assert names == ['two, K=2, 2 devices']


@pytest.mark.parametrize(('devices', 'names'), [
    (1, ['1b', '430m']),
    (4, ['430m\ndevices: 1', '1b\ndevices: 4']),
])
def test_sizes_are_drawn_with_their_devices_where_they_differ(
    tmp_path: Path,
    devices: int,
    names: list[str],
):
    for size, n in (('430m', 1), ('1b', devices)):
        write_point(
            tmp_path,
            rate=None,
            size=size,
            engine={
                'devices': n,
                'weight_bytes': 100,
            },
        )
    drawing = next(draw_figures(Summary(read_points(tmp_path)), {}))
    assert drawing.name == 'throughput'
    ticks = drawing.figure.axes[0].get_xticklabels()
    assert [tick.get_text() for tick in ticks] == names


def test_a_variant_without_its_base_has_no_gap(tmp_path: Path):
    write_point(tmp_path)
    write_point(tmp_path, 8, 2)
    write_point(tmp_path, 8, 1, variant='fp8')
    row, = tables(report(tmp_path), 'Variants: the gap to dense they close')
    assert row == ['430m', 'fp8', 'K=1', '1', '-', '-', '-', 'no base']


@pytest.mark.parametrize(('n_requests', 'row'), [
    (6, ['K=2', '1', '990 (n/a)', '1.0% (n/a)', 'saturated rates']),
    (5, ['K=2', '-', '-', '-', 'too few requests']),
])
def test_few_saturated_requests_are_no_maximum(
    tmp_path: Path,
    n_requests: int,
    row: list[str],
):
    write_point(tmp_path, rate=2.0, throughput=1000.0, saturated=True)
    write_point(
        tmp_path,
        8,
        2,
        2.0,
        throughput=990.0,
        saturated=True,
        requests=one_by_one(n_requests),
    )
    text = report(tmp_path)
    assert tables(text, 'Maximum throughput')[1][:5] == row
    told = '**Saturated points with too few requests**, which no maximum is ' \
        'made of: K=2 1.'
    assert (told in text) == (n_requests < 6)


def test_what_lacks_the_unbounded_rate_shows_the_other(tmp_path: Path):
    write_point(tmp_path, rate=None, throughput=1000.0)
    write_point(tmp_path, 8, 1, None, throughput=600.0)
    write_point(tmp_path, 8, 2, throughput=550.0, saturated=True)
    rows = tables(report(tmp_path), 'Maximum throughput')
    assert rows[2][1:6] == [
        '-',
        'at least 550',
        '-',
        'not at the unbounded rate',
        '550 (n/a)',
    ]


def test_experts_are_named_where_they_differ(tmp_path: Path):
    for experts in (1, 4, 8):
        write_point(tmp_path, experts, min(2, experts), rate=None)
    rows = tables(report(tmp_path), 'Rates')
    names = [row[0] for row in rows]
    assert names == ['dense', '4 experts, K=2', '8 experts, K=2']


def test_nothing_done_is_told(tmp_path: Path):
    write_point(tmp_path, status='failed', reason='it died.')
    text = report(tmp_path)
    assert '1 failed, beside 0 that are done' in text
    assert set(files(tmp_path / 'report')) == {
        'report.md',
        'report.html',
        'points.csv',
    }


def test_what_an_earlier_report_had_goes(tmp_path: Path):
    path = write_point(tmp_path, rate=None)
    write_report(tmp_path)
    assert (tmp_path / 'report/serving.json').is_file()
    record = json.loads(path.read_text())
    record |= {'status': 'failed', 'reason': 'it died.'}
    path.write_text(json.dumps(record))
    (tmp_path / 'report/notes.txt').write_text('mine')
    write_report(tmp_path)
    assert not (tmp_path / 'report/serving.json').exists()
    assert not list((tmp_path / 'report/figures').iterdir())
    assert (tmp_path / 'report/notes.txt').read_text() == 'mine'


def test_what_is_no_file_is_not_replaced(tmp_path: Path):
    write_point(tmp_path)
    fifo = tmp_path / 'report/report.md'
    fifo.parent.mkdir()
    os.mkfifo(fifo)
    with pytest.raises(HarnessError, match='report.md is there, and no file'):
        write_report(tmp_path)
    assert os.listdir(fifo.parent) == ['report.md'] and fifo.is_fifo()


def test_what_can_not_be_written_leaves_nothing(tmp_path: Path):
    write_point(tmp_path)
    (tmp_path / 'report').write_text('a file')
    with pytest.raises(
            HarnessError,
            match="folder='.*/report': the report can't be written",
    ):
        write_report(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {'points', 'report'}
    assert (tmp_path / 'report').read_text() == 'a file'


def test_an_incomplete_study_leaves_the_earlier_report(tmp_path: Path):
    write_point(tmp_path)
    write_report(tmp_path)
    before = files(tmp_path / 'report')
    write_point(tmp_path, run=1).write_text('{')
    with pytest.raises(HarnessError, match="it can't be read as JSON"):
        write_report(tmp_path)
    assert files(tmp_path / 'report') == before


def test_names_are_text(tmp_path: Path):
    odd = {
        'labels': [f'{ODD} 1'],
        'machine': CPU | {
            'cpu': f'{ODD} 2'
        },
        'engine': {
            'moe_kernel': f'{ODD} 3'
        },
        'config': {
            'study': f'{ODD} 4',
            'routing': f'{ODD} 5'
        },
        'size': '__s__',
    }
    for experts in (1, 8):
        write_point(tmp_path, experts, min(experts, 2), rate=None, **odd)
    reason = {'status': 'failed', 'reason': f'{ODD} 6'}
    write_point(tmp_path, 8, 2, run=1, **odd | reason)
    found = Rendered(report(tmp_path))
    assert set(found.tags) <= TAGS
    for n in range(1, 7):
        assert f'{ODD} {n}' in found.text
    assert '__s__: tables' in found.text


def test_the_end_of_a_log_is_told():
    assert end_of('a\n b') == 'a b'
    assert end_of('x' * 500) == f"... {'x' * 300}"


def test_cells_by_hand():
    assert span([], '.1f') == '-'
    assert span([2.0, 1.0, 2.04], '.1f') == '1.0 to 2.0'
    assert span([2.0, 2.04], '.1f') == '2.0'
    assert markdown_table(['a', 'b'],
                          [['1', '2']
                          ]) == ('| a | b |\n| --- | ---: |\n| 1 | 2 |')
