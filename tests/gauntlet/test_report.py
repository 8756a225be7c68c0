import json
import math
from pathlib import Path

import pytest
from matplotlib import image

from foundry_upcycle.gauntlet.figure import plot_scores
from foundry_upcycle.gauntlet.gauntlets import Benchmark, Gauntlet
from foundry_upcycle.gauntlet.report import (
    Outcome,
    render_report,
    shown_categories,
    to_json,
)
from foundry_upcycle.gauntlet.results import ModelResults, Part
from foundry_upcycle.gauntlet.scores import compare, score

COPA = Benchmark('copa', 0, 0.5)
LAMBADA = Benchmark('lambada', 0, 0.0)
SMALL = Gauntlet(
    'small',
    {
        'sense': (COPA, ),
        'language': (LAMBADA, ),
        'all_tasks': (COPA, LAMBADA),
    },
    {'core_average': ('all_tasks', )},
)


def _model(label: str, accuracies: dict[str, float], n: int | None = 1000):
    tasks = {
        task: {
            task: Part('M', accuracy, n)
        }
        for task, accuracy in accuracies.items()
    }
    return ModelResults(label, f'results/{label}.json', tasks, 12_000)


DENSE = _model('dense', {'copa/0-shot': 0.45, 'lambada/0-shot': 0.5})
MOE = _model('moe', {'copa/0-shot': 0.46, 'lambada/0-shot': 0.6})


def _outcome(*models: ModelResults, gauntlet: Gauntlet = SMALL) -> Outcome:
    """Of models of which the first is the baseline."""
    return Outcome(
        gauntlet,
        [score(model, gauntlet) for model in models],
        [compare(model, models[0], gauntlet) for model in models[1:]],
    )


def _lines(*models: ModelResults) -> list[list[str]]:
    """Cells of each line of the report; other text is one cell."""
    report = render_report(models, [_outcome(*models)])
    return [[cell.strip()
             for cell in line.strip('|').split('|')]
            for line in report.splitlines()]


def test_score_table():
    lines = _lines(DENSE, MOE)
    assert ['dense', '12,000', '`results/dense.json`'] in lines
    assert ['', 'n', 'dense', 'moe'] in lines
    rows = {line[0]: line[1:] for line in lines if len(line) == 4}
    # Wilson or bootstrap, 1.96 sqrt(0.45 x 0.55 / 1000) = 0.031.
    n, dense, moe = rows['copa/0-shot']
    assert n == '1,000'
    assert dense.startswith('0.450 (0.4') and moe.startswith('0.460 (0.4')
    # Above chance, and the mean of -0.1 and 0.5.
    assert rows['**sense**'][1].startswith('-0.100 (-0.16')
    assert rows['**core_average**'][1].startswith('0.200 (0.1')


def test_each_task_stands_once():
    lines = _lines(DENSE, MOE)
    titles = [line[0] for line in lines if len(line) == 4][2:]
    assert titles == [
        '**sense**',
        'copa/0-shot',
        '**language**',
        'lambada/0-shot',
        '**core_average**',
    ]


def test_change_table():
    lines = _lines(DENSE, MOE)
    assert ['### moe against dense'] in lines
    assert ['Over 2 of 2 tasks, 0 of them resampled in pairs.'] in lines
    rows = {line[0]: line[1:] for line in lines if len(line) == 6}
    assert rows[''][:2] == ['dense', 'moe']
    base, value, difference, relative, verdict = rows['lambada/0-shot']
    assert (base, value, relative) == ('0.500', '0.600', '+20.0%')
    # 1.96 sqrt((0.25 + 0.24) / 1000) = 0.043.
    assert difference.startswith('+0.100 (+0.05')
    assert verdict == 'higher'
    assert rows['copa/0-shot'][-1] == 'not told apart'
    # Nothing is relative to a score below chance.
    assert rows['**sense**'][-2:] == ['n/a', 'not told apart']


def test_missing_tasks():
    part = _model('dense', {'lambada/0-shot': 0.5})
    text = render_report([part, MOE], [_outcome(part, MOE)])
    assert (
        '- dense: core_average over 1 of 2 tasks: left out copa/0-shot.' in text
    )
    assert 'The models were not measured on the same tasks' in text
    assert (
        'Over 1 of 2 tasks, 0 of them resampled in pairs: left out copa/0-shot.'
        in text
    )
    row = next(line for line in _lines(part, MOE) if line[0] == 'copa/0-shot')
    assert row[2] == '-'


def test_tasks_that_no_model_has_are_not_rows():
    part = _model('dense', {'lambada/0-shot': 0.5})
    assert '\n| copa' not in render_report([part], [_outcome(part)])
    assert 'not measured on the same' not in render_report(
        [part],
        [_outcome(part)],
    )


def test_numbers_of_examples_are_not_always_known():
    unknown = _model('moe', {'copa/0-shot': 0.6}, n=None)
    lines = _lines(DENSE, unknown)
    row = next(line for line in lines if line[0] == 'copa/0-shot')
    assert row[1] == '1,000 or -'
    assert row[3] == '0.600 (no interval)'
    assert any(line[-1] == 'not known' for line in lines)


def test_all_categories_are_shown_where_no_average_is_of_one():
    assert shown_categories(SMALL) == ['sense', 'language']
    average = {'core_average': ('sense', 'language')}
    both = Gauntlet('both', SMALL.categories, average)
    assert shown_categories(both) == ['sense', 'language', 'all_tasks']


def test_a_task_of_hidden_categories_has_a_row():
    of_one = Gauntlet('', {'all': (COPA, )}, {'average': ('all', )})
    text = render_report([DENSE], [_outcome(DENSE, gauntlet=of_one)])
    assert '| copa/0-shot ' in text


def test_json():
    outcome = _outcome(DENSE, MOE)
    content = to_json([DENSE, MOE], [outcome])
    assert json.loads(json.dumps(content, allow_nan=False))
    assert content['models']['moe'] == {
        'source': 'results/moe.json',
        'n_params': 12_000,
    }
    small = content['gauntlets']['small']
    scores = small['scores']['moe']
    assert scores['n_examples'] == {'copa/0-shot': 1000, 'lambada/0-shot': 1000}
    assert scores['categories']['language']['value'] == pytest.approx(0.6)
    assert scores['missing'] == ()
    change = small['comparisons']['moe']['averages']['core_average']
    # (-0.08 + 0.6) / 2 = 0.26 against 0.2.
    assert change['relative'] == pytest.approx(0.3)
    assert change['difference'] == pytest.approx(0.06)
    assert change['verdict'] == 'higher'
    low, high = change['interval']
    # 1.96 sqrt(4 x (0.2475 + 0.2484) / 1000 + 0.49 / 1000) / 2 = 0.0488
    assert (low, high) == pytest.approx((0.0112, 0.1088), abs=0.002)
    relative = small['comparisons']['moe']['categories']['sense']['relative']
    assert relative is None
    assert math.isnan(outcome.comparisons[0].categories['sense'].relative)


def test_figure_is_an_image(tmp_path: Path):
    unknown = _model('unknown', {'lambada/0-shot': 0.6}, n=None)
    outcome = _outcome(DENSE, MOE, unknown)
    plot_scores([outcome, outcome], tmp_path / 'scores.png')
    assert image.imread(tmp_path / 'scores.png').std() > 0.01
