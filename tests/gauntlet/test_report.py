import json
import math
import re
from pathlib import Path
from typing import Optional

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib import image
from matplotlib.container import ErrorbarContainer
from rendered import ODD, TAGS, Rendered

from foundry_upcycle.gauntlet.figure import draw_scores, plot_scores
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
    assert ['dense', '12,000', '-', '`results/dense.json`'] in lines
    assert ['', 'n', 'dense', 'moe'] in lines
    rows = {line[0]: line[1:] for line in lines if len(line) == 4}
    # 1.96 sqrt(0.45 x 0.55 / 1000) = 0.031.
    n, dense, moe = rows['copa/0-shot']
    assert n == '1,000'
    assert dense.startswith('0.450 (0.4') and moe.startswith('0.460 (0.4')
    # Above chance, and the mean of -0.1 and 0.5.
    assert rows['**sense**'][1].startswith('-0.100 (-0.16')
    assert rows['**core_average**'][1].startswith('0.200 (0.1')


def test_each_task_stands_once():
    lines = _lines(DENSE, MOE)
    first = lines.index(['', 'n', 'dense', 'moe']) + 2
    titles = [line[0] for line in lines[first:] if len(line) == 4]
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
    assert (base, value) == ('0.500', '0.600')
    # 1.2 x 1.96 sqrt(0.25 / 0.5^2 + 0.24 / 0.6^2) / sqrt(1000) = 0.096.
    assert relative.startswith('+20.0% (+10.') and '% to +30.' in relative
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
    # Its only task was copa.
    assert 'left out copa/0-shot. No task is left of sense.\n' in text
    assert 'In other numbers' not in text
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


def _of_parts(label: str, n_parts: int, n: Optional[int]) -> ModelResults:
    """A model of which copa has categories."""
    parts = {
        f'copa/0-shot/{index}': Part('M', 0.75, n)
        for index in range(n_parts)
    }
    return ModelResults(label, 'x', {'copa/0-shot': parts})


@pytest.mark.parametrize('n', [100, None])
def test_a_task_of_which_a_model_lacks_categories(n: Optional[int]):
    whole, rest = _of_parts('dense', 57, n), _of_parts('moe', 3, n)
    outcome = Outcome(SMALL, [score(m, SMALL) for m in (whole, rest)], [])
    assert outcome.of_other_sizes == ('copa/0-shot', )
    assert not outcome.of_same_tasks
    text = render_report([whole, rest], [outcome])
    assert 'not measured on the same tasks or examples' in text
    assert '- In other numbers of examples or categories: copa/0-shot.' in text


def test_other_numbers_of_examples():
    fewer = _model('moe', {'copa/0-shot': 0.46, 'lambada/0-shot': 0.6}, n=500)
    assert not _outcome(DENSE, fewer).of_same_tasks
    # Not known is not other.
    unknown = _model('moe', {'copa/0-shot': 0.4, 'lambada/0-shot': 0.6}, n=None)
    assert _outcome(DENSE, unknown).of_same_tasks


def test_seconds():
    tasks = {
        'copa/0-shot': {
            'copa/0-shot': Part('M', 0.5, 10, seconds=1200.25),
        },
        'lambada/0-shot': {
            'lambada/0-shot/a': Part('M', 0.5, 10, seconds=30.5),
            'lambada/0-shot/b': Part('M', 0.5, 10),
        },
        # Of no gauntlet here.
        'other/0-shot': {
            'other/0-shot': Part('M', 0.5, 10, seconds=4.0),
        },
    }
    timed = ModelResults('timed', 'x', tasks)
    assert ['model', 'parameters', 'seconds', 'results'] in _lines(timed)
    assert ['timed', '-', '1,234.8', '`x`'] in _lines(timed)
    content = to_json([timed, DENSE], [])
    assert content['models']['timed']['seconds'] == {
        'copa/0-shot': 1200.25,
        'lambada/0-shot': 30.5,
        'other/0-shot': 4.0,
    }
    assert content['models']['dense']['seconds'] == {
        'copa/0-shot': None,
        'lambada/0-shot': None,
    }


def test_names_are_text():
    task = Benchmark(ODD, 0, 0.0)
    categories = {f'{ODD} 1': (task, ), f'{ODD} 2': (task, COPA)}
    gauntlet = Gauntlet(ODD, categories, {ODD: tuple(categories)})
    first, second = (
        _model(f'{ODD} {n}', {f'{ODD}/0-shot': 0.5}) for n in (3, 4)
    )
    outcome = _outcome(first, second, gauntlet=gauntlet)
    found = Rendered(render_report([first, second], [outcome]))
    assert set(found.tags) <= TAGS
    for n in range(1, 5):
        assert f'{ODD} {n}' in found.text
    assert f'results/{ODD} 3.json' in found.text


def test_labels_do_not_break_tables():
    odd = _model('a|b', {'copa/0-shot': 0.45})
    text = render_report([odd, MOE], [_outcome(odd, MOE)])
    assert r'| a\|b ' in text and r'`results/a\|b.json`' in text
    widths = [[
        len(re.findall(r'(?<!\\)\|', row)) for row in table.splitlines()
    ] for table in text.split('\n\n') if table.startswith('|')]
    assert [set(of) for of in widths] == [{5}, {5}, {7}]


def test_reading_text_of_what_is_taken_for_granted():
    text = render_report([DENSE], [_outcome(DENSE)])
    assert 'take for granted that both models were asked the same' in text
    assert 'rests on one accuracy' in text and "Wilson's" in text
    assert 'bootstrap over examples' not in text


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


def test_a_category_that_an_average_names_twice_is_alone():
    twice = Gauntlet('', SMALL.categories, {'mean': ('all_tasks', ) * 2})
    assert shown_categories(twice) == ['sense', 'language']


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
        'seconds': {
            'copa/0-shot': None,
            'lambada/0-shot': None,
        },
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
    of_sense = small['comparisons']['moe']['categories']['sense']
    assert of_sense['relative'] is of_sense['relative_interval'] is None
    assert math.isnan(outcome.comparisons[0].categories['sense'].relative)


def _bars(drawn: ErrorbarContainer) -> list[list[float]]:
    """Both ends of each bar that is drawn; caps must be at them."""
    _, caps, (bars, ) = drawn.lines
    ends = [
        segment[:, 0].tolist()
        for segment in bars.get_segments()
        if len(segment)
    ]
    for cap, side in zip(caps, (0, 1), strict=True):
        places = np.asarray(cap.get_xdata(), dtype=float)
        expected = [pair[side] for pair in ends]
        assert places[np.isfinite(places)] == pytest.approx(expected)
    return ends


def test_figure_shows_each_score_and_interval():
    unknown = _model('unknown', {'lambada/0-shot': 0.6}, n=None)
    outcome = _outcome(DENSE, MOE, unknown)
    figure = draw_scores([outcome, _outcome(DENSE, MOE)])
    left, right = figure.axes
    assert (len(left.containers), len(right.containers)) == (3, 2)
    assert left.get_title() == 'small (not on the same examples)'
    assert right.get_title() == 'small'
    names = [tick.get_text() for tick in left.get_yticklabels()]
    assert names == ['sense', 'language', 'core average']
    for drawn, scores in zip(left.containers, outcome.scores):
        assert isinstance(drawn, ErrorbarContainer)
        assert drawn.get_label() == scores.label
        rows = [
            scores.categories.get('sense'),
            scores.categories.get('language'),
            scores.averages.get('core_average'),
        ]
        shown = [(place, row) for place, row in enumerate(rows) if row]
        x, y = np.asarray(drawn.lines[0].get_data(), dtype=float)
        assert x == pytest.approx([row.value for _, row in shown])
        assert y.round().tolist() == [place for place, _ in shown]
        # Points alone where how far they may be off is not known.
        assert _bars(drawn) == [
            pytest.approx(row.interval) for _, row in shown if row.interval
        ]
    plt.close(figure)


def test_figure_is_written(tmp_path: Path):
    plot_scores([_outcome(DENSE, MOE)], tmp_path / 'scores.png')
    assert image.imread(tmp_path / 'scores.png').std() > 0.01
    assert not plt.get_fignums()
