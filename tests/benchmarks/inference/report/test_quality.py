"""Quality against cost: numbers by hand, and what the report shows of them."""

import json
import math
from pathlib import Path
from typing import Any, Optional

import pytest
from serving_study import CPU, write_point

from benchmarks.inference.analysis.intervals import (
    ratio_interval,
    share_interval,
    t_quantile,
)
from benchmarks.inference.errors import HarnessError
from benchmarks.inference.point_format import QUALITY_FORMAT
from benchmarks.inference.report.answers import read_answers
from benchmarks.inference.report.quality import (
    Quality,
    find_quality,
    front_of_latency,
    front_of_throughput,
    pareto,
)
from benchmarks.inference.report.records import Arm
from benchmarks.inference.report.report import write_report
from benchmarks.inference.report.results import read_points
from benchmarks.inference.report.summary import Summary

DENSE, MOE, K1 = Arm(1, 1), Arm(8, 2), Arm(8, 1)
CONTINUED = Arm(1, 1, name='continued')
MEAN = Arm(1, 1, name='mean')
KEPT = Arm(4, 2, name='kept')
# Three documents of 10, 20 and 70 tokens -> nats of each.
LOSSES = {
    DENSE: (50.0, 60.0, 250.0),
    CONTINUED: (44.0, 54.0, 232.0),
    MOE: (40.0, 50.0, 210.0),
    K1: (41.0, 51.0, 213.0),
    MEAN: (60.0, 80.0, 300.0),
    KEPT: (41.0, 53.0, 220.0),
}
# Tokens a second at the most, and seconds of a request.
COSTS = {
    DENSE: (1000.0, 2.0),
    CONTINUED: (1000.0, 2.0),
    MOE: (500.0, 4.0),
    K1: (700.0, 3.0),
    MEAN: (990.0, 2.1),
    KEPT: (600.0, 4.5),
}
TOKENS = (10, 20, 70)


def write_answers(
    folder: Path,
    arm: Arm,
    changes: Optional[dict[str, Any]] = None,
    **of_record: Any,
) -> Path:
    """Writes what the runner would have, of ``LOSSES``."""
    config = {
        'study': 'cpu',
        'size': '430m',
        'architecture': 'dense' if arm.is_dense else 'moe',
        'experts': arm.experts,
        'top_k': arm.top_k,
        'variant': arm.variant,
        'quality': {
            'texts': 'a digest',
            'reference': [None, 8, 2],
            'baseline': ['continued', 1, 1],
        },
        **({
            'name': arm.name
        } if arm.name else {}),
    }
    likeliest = [[7] * n for n in TOKENS]
    greedy = [[1, 2, 3, 4]] * 4
    if arm != MOE:
        # One place in ten is another; two of four answers, from the third on.
        likeliest = [[8] * (n // 10) + [7] * (n - n // 10) for n in TOKENS]
        greedy = [[1, 2, 3, 4]] * 2 + [[1, 2, 9, 4]] * 2
    record = {
        'format': QUALITY_FORMAT,
        'id': '0' * 16,
        'config': config,
        'status': 'done',
        'reason': None,
        'machine': CPU,
        'labels': [],
        'quality': {
            'documents': {
                'tokens': TOKENS,
                'nll': LOSSES[arm],
                'bytes': [4 * n for n in TOKENS],
            },
            'likeliest': likeliest,
            'greedy': greedy,
            'tasks': {
                'piqa': [1.0, 0.0, 1.0, 1.0]
            },
            **(changes or {}),
        },
        **of_record,
    }
    path = folder / 'quality' / f'{arm.name}{arm.experts}{arm.top_k}'
    path.mkdir(parents=True)
    (path / 'quality.json').write_text(json.dumps(record))
    return path / 'quality.json'


def write_speed(folder: Path, arm: Arm) -> None:
    throughput, latency = COSTS[arm]
    config = {'name': arm.name} if arm.name else {}
    for rate in (0.1, None):
        for run in range(2):
            write_point(
                folder,
                arm.experts,
                arm.top_k,
                rate,
                run,
                throughput=throughput + run,
                latency=latency,
                config=config,
            )


@pytest.fixture(scope='module')
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('study')
    for arm in LOSSES:
        write_speed(folder, arm)
        write_answers(folder, arm)
    return folder


@pytest.fixture(scope='module')
def found(study: Path) -> dict[Arm, Quality]:
    answers, missing = read_answers(study)
    assert not missing
    summary = Summary(read_points(study))
    return {q.arm: q for q in find_quality(summary, answers['430m'], '430m')}


def test_a_ratio_is_of_sums():
    parts, wholes = [1.0, 5.0, 9.0], [2.0, 4.0, 4.0]
    # 15 / 10; residuals 1 - 3, 5 - 6, 9 - 6.
    error = math.sqrt(3 / 2 * (4 + 1 + 9)) / 10
    half = t_quantile(0.975, 2) * error
    assert ratio_interval(parts, wholes) == pytest.approx(
        (1.5, 1.5 - half, 1.5 + half),
    )
    with pytest.raises(ValueError, match='1 runs have no interval'):
        ratio_interval([1.0], [1.0])


def test_a_share_is_by_wilsons_score():
    # The p at which (share - p)^2 = z^2 p (1 - p) / n: Wilson's two roots.
    for n_right, n in ((3, 4), (7, 20)):
        share, *ends = share_interval(n_right, n)
        for p in ends:
            assert (share -
                    p)**2 == pytest.approx(1.959964**2 * p * (1 - p) / n)
    assert share_interval(5, 5)[1] == pytest.approx(5 / (5 + 1.959964**2))
    assert share_interval(5, 5)[2] == 1


def test_losses_are_per_token_and_per_byte(found: dict[Arm, Quality]):
    assert found[MOE].nll.value == 3.0
    bits = found[MOE].bits_per_byte
    assert bits and bits.value == pytest.approx(3 / math.log(2) / 4)
    assert found[MOE].nll.n_runs == 3


def test_what_is_compared_with_the_reference(found: dict[Arm, Quality]):
    reference, k1 = found[MOE], found[K1]
    assert (
        reference.behind, reference.alike, reference.until, reference.whole
    ) == (None, ) * 4
    assert k1.behind and k1.behind.value == pytest.approx(0.05)
    # In pairs: the intervals of either alone are far wider.
    low, high = k1.behind.interval or (0, 0)
    alone = k1.nll.interval or (0, 0)
    assert high - low < (alone[1] - alone[0]) / 4
    assert k1.alike and k1.alike.value == pytest.approx(0.9)
    # Two answers are wholly the same; of the others 2 tokens of 4.
    assert k1.until and k1.until.value == pytest.approx(0.75)
    assert k1.whole and k1.whole.value == pytest.approx(0.5)


def test_gains_are_over_the_baseline(found: dict[Arm, Quality]):
    # Continued 330, the mixture 300: K = 1 has 25 of 30, the mean -110.
    gains = {arm: q.gain and q.gain.value for arm, q in found.items()}
    assert gains[MOE] == 1
    assert gains[CONTINUED] == 0
    assert gains[K1] == pytest.approx(25 / 30)
    assert gains[MEAN] == pytest.approx(-110 / 30)


def test_costs_and_memory(found: dict[Arm, Quality]):
    k1 = found[K1]
    assert k1.throughput and k1.throughput.value == 700.5
    assert (k1.kind, k1.rate) == ('unbounded rate', 0.1)
    assert k1.latency and k1.latency.value == 3.0
    assert k1.weight_bytes == 4 * 872_500_000
    assert k1.tasks['piqa'].value == 0.75


def test_the_front(found: dict[Arm, Quality]):
    of_throughput = dict(zip(found, front_of_throughput([*found.values()])))
    # Dense is behind continued at the same cost, the mean behind both, four
    # experts behind K = 1.
    assert {arm
            for arm, is_on in of_throughput.items()
            if is_on} == {CONTINUED, MOE, K1}
    assert front_of_latency([*found.values()]) == [*of_throughput.values()]
    assert pareto([(1, 2), None, (1, 2), (2, 1),
                   (2, 2)]) == [True, False, True, True, False]


def test_the_report_shows_them(study: Path):
    text = write_report(study).read_text()
    assert (study / 'report/figures/quality_430m.svg').is_file()
    table = text.split('### Quality and cost\n')[1].split('\n###')[0]
    rows = [[cell.strip()
             for cell in line.split('|')[1:-1]]
            for line in table.strip().splitlines()]
    names = [row[0] for row in rows[2:]]
    assert names == ['dense', 'continued', 'mean', 'kept, K=2', 'K=1', 'K=2']
    fronts = {row[0]: row[-1] for row in rows[2:]}
    assert fronts['continued'] == 'throughput, latency'
    assert fronts['mean'] == '-'
    # Other models close the gap, or do not, as variants do.
    assert '| other model | mean |' in text
    serving = json.loads((study / 'report/serving.json').read_text())
    # Which knows a size's own models only.
    assert [(m['experts'], m['top_k']) for m in serving['models']] == [(1, 1),
                                                                       (8, 1),
                                                                       (8, 2)]


def test_one_document_has_no_interval(tmp_path: Path):
    changes = {
        'documents': {
            'tokens': [3],
            'nll': [6.0],
            'bytes': None
        },
        'likeliest': [[1, 2, 3]],
        'greedy': [[1]],
        'tasks': None,
    }
    for arm in (DENSE, MOE):
        write_speed(tmp_path, arm)
        write_answers(tmp_path, arm, changes)
    answers, _ = read_answers(tmp_path)
    summary = Summary(read_points(tmp_path))
    dense, moe = find_quality(summary, answers['430m'], '430m')
    assert dense.nll.value == 2 and dense.nll.interval is None
    # Of the baseline there are no answers, and so is no gain.
    assert (moe.gain, moe.bits_per_byte) == (None, None)
    assert dense.whole and dense.whole.value == 1
    assert '(n/a)' in write_report(tmp_path).read_text()


def test_what_was_not_asked_is_told(tmp_path: Path):
    write_speed(tmp_path, MOE)
    write_answers(tmp_path, MOE, status='failed', reason='it died.')
    answers, missing = read_answers(tmp_path)
    assert (answers, [m.reason for m in missing]) == ({}, ['it died.'])
    text = write_report(tmp_path).read_text()
    assert '- K=2: failed: it died.' in text


@pytest.mark.parametrize(
    ('changes', 'of_record', 'message'),
    [
        (
            {
                'likeliest': [[7]] * 3
            },
            {},
            'quality.likeliest.*documents have other numbers of tokens',
        ),
        ({
            'greedy': 'none'
        }, {}, "quality.greedy='none': it is not a list"),
        ({
            'tasks': {
                'piqa': [True]
            }
        }, {}, 'quality.tasks.piqa.*is True, no finite number'),
        ({}, {
            'format': 'older'
        }, "format='older': this version reads"),
        (
            {
                'documents': {
                    'tokens': [1],
                    'nll': [],
                    'bytes': None
                }
            },
            {},
            'documents.tokens.*other numbers of documents',
        ),
    ],
)
def test_damaged_records(
    tmp_path: Path,
    changes: dict[str, Any],
    of_record: dict[str, Any],
    message: str,
):
    write_answers(tmp_path, MOE, changes, **of_record)
    with pytest.raises(HarnessError, match=message):
        read_answers(tmp_path)


def test_what_was_asked_otherwise_is_refused(tmp_path: Path):
    write_answers(tmp_path, MOE)
    path = write_answers(tmp_path, DENSE)
    record = json.loads(path.read_text())
    record['config']['quality']['texts'] = 'another digest'
    path.write_text(json.dumps(record))
    with pytest.raises(HarnessError, match='was asked something else'):
        read_answers(tmp_path)
    record['config'] = json.loads(
        (tmp_path / 'quality/82/quality.json').read_text()
    )['config']
    path.write_text(json.dumps(record))
    with pytest.raises(HarnessError, match='is of the same size and model'):
        read_answers(tmp_path)
