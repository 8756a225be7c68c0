import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from math import sqrt
from pathlib import Path
from typing import Any, Optional

import numpy as np
import pytest
from rendered import ODD, TAGS, Rendered
from scipy import stats
from study.report.synthetic import (
    GAUNTLET,
    N_LAYERS,
    Measured,
    make_grid,
    make_results,
    plain_study,
)

from foundry_upcycle.errors import ConfigError
from foundry_upcycle.gauntlet.gauntlets import parse_gauntlet
from foundry_upcycle.gauntlet.intervals import binomial_interval
from foundry_upcycle.gauntlet.results import ModelResults, Part
from foundry_upcycle.gauntlet.scores import Change, compare
from foundry_upcycle.study.grid import Run
from foundry_upcycle.study.report.report import write_report
from foundry_upcycle.study.results import ExpertLoad, StudyResults

SERVING = {
    'format':
    'foundry_upcycle/serving/1',
    'labels': ['CPU', 'dummy weights'],
    'models': [{
        'size': 'small',
        'experts': experts,
        'top_k': top_k,
        'max_throughput_tokens_per_s': {
            'mean': mean,
            'low': mean,
            'high': mean
        },
    } for experts, top_k, mean in ((1, 1, 1000.0), (8, 2, 400.0))],
}


def full_study(folder: Path) -> StudyResults:
    """Two durations, three fractions, two seeds, and everything measured."""
    grid = make_grid(
        folder,
        durations={
            'medium': '43.6e9tok',
            'long': '100e9tok'
        },
        fractions=(0.1, 0.2, 0.4),
        seeds=(1, 2),
        sweep=(5e-5, 1e-4),
        texts=('web', ),
        has_gauntlet=True,
        paper='436M',
        batch=136250,  # Of 4.36e6 tokens: medium has 10,000 steps.
    )

    def measure(run: Run) -> Measured:
        place = run.place
        if place.arm is None:
            return Measured(3.5, {'web': 3.0}, (0.2, 0.2), seconds=100.0)
        loss = 3 - place.budget + 0.02 * (place.seed == 2)
        if run.learning_rate == 5e-5:
            return Measured(loss + 1)
        if place.arm == 'cpt':
            return Measured(loss, {'web': loss}, (0.2, 0.3), seconds=10.0)
        load = ExpertLoad(
            np.array([1, 2]),
            tuple(range(N_LAYERS)),
            np.full((2, N_LAYERS, 8), 1 / 8),
        )
        return Measured(
            loss - 0.1,
            {'web': loss + 0.5},
            (0.2, 0.4),
            load=load,
            seconds=12.3,
        )

    return make_results(grid, measure)


@pytest.fixture(scope='module')
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the report of the full study was written."""
    folder = tmp_path_factory.mktemp('full')
    serving = folder / 'serving.json'
    serving.write_text(json.dumps(SERVING))
    write_report(full_study(folder), folder / 'report', serving)
    return folder / 'report'


@pytest.fixture(scope='module')
def report(written: Path) -> str:
    return (written / 'report.md').read_text()


def lines_of(study: StudyResults, folder: Path) -> list[str]:
    """Of report.md; its figures are drawn, and not rendered: that is slow."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            'foundry_upcycle.study.report.report.render', lambda *_: b''
        )
        return write_report(study, folder / 'out').read_text().splitlines()


def without(study: StudyResults, *patterns: str) -> StudyResults:
    results = {
        name: result
        for name, result in study.results.items()
        if not any(re.fullmatch(pattern, name) for pattern in patterns)
    }
    return StudyResults(study.grid, results)


def test_files(written: Path):
    names = [
        'curves_small',
        'experts_small_upcycled',
        'gains_small',
        'quality_small',
        'serving_small',
    ]
    assert sorted(path.name for path in written.iterdir()) == [
        'figures',
        'report.html',
        'report.md',
    ]
    assert sorted(path.name for path in (written / 'figures').iterdir()) == [
        f'{name}.{kind}' for name in names for kind in ('png', 'svg')
    ]
    # Nothing of how it was made is left.
    assert not list(written.parent.glob('.report*'))


def test_images_exist(written: Path, report: str):
    links = re.findall(r'!\[[^]]*\]\(([^)]*)\)', report)
    assert len(links) == 5
    for link in links:
        assert (written / link).read_bytes().startswith(b'\x89PNG')


def test_page_needs_nothing_else(written: Path):
    sources = []

    class Links(HTMLParser):

        def handle_starttag(self, tag: str, attrs: Any) -> None:
            assert tag not in ('script', 'link', 'iframe', 'object')
            sources.extend(
                value for name, value in attrs if name in ('src', 'href')
            )

    page = (written / 'report.html').read_text()
    Links().feed(page)
    assert len(sources) == 5
    assert all(s.startswith('data:image/svg+xml;base64,') for s in sources)
    assert 'url(' not in page and '@import' not in page


def test_written_twice_it_is_the_same(written: Path, tmp_path: Path):
    serving = written.parent / 'serving.json'
    write_report(full_study(tmp_path), tmp_path / 'report', serving)
    for path in written.rglob('*'):
        if path.is_file():
            again = tmp_path / 'report' / path.relative_to(written)
            assert again.read_bytes() == path.read_bytes(), path.name


def test_it_replaces_its_files_and_no_others(tmp_path: Path):
    study = plain_study(tmp_path)
    out = tmp_path / 'out'
    (out / 'figures').mkdir(parents=True)
    (out / 'report.md').write_text('old')
    (out / 'figures' / 'mine.png').write_text('mine')
    path = write_report(study, out)
    assert path == out / 'report.md'
    assert path.read_text().startswith('# Study synthetic')
    assert (out / 'figures' / 'mine.png').read_text() == 'mine'


def test_nothing_is_written_when_it_fails(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    study = plain_study(tmp_path)
    write = Path.write_bytes

    def fails(path: Path, content: bytes) -> int:
        if path.name == 'report.md':
            raise OSError('disk full')
        return write(path, content)

    monkeypatch.setattr(Path, 'write_bytes', fails)
    with pytest.raises(
            ConfigError,
            match=r"out='.*': it can't be written \(disk full\)",
    ):
        write_report(study, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()
    assert not list(tmp_path.glob('.out*'))


def _gain(from_second: int, to_second: int) -> Change:
    """In the mean of two tasks, of which one gains examples of 100."""
    answers = [
        ModelResults(
            '',
            '',
            {
                task: {
                    task: Part('', n / 100, 100,
                               np.arange(100) < n)
                }
                for task, n in (('first/0-shot', 20), ('second/0-shot', second))
            },
        )
        for second in (to_second, from_second)
    ]
    gauntlet = parse_gauntlet('synthetic', GAUNTLET)
    return compare(*answers, gauntlet).averages['core_average']


def test_verdict(report: str):
    # Differences at 0.4: -0.1 of the training loss, +0.5 of the held-out one,
    # the same for all seeds; (0.2 + 0.4) / 2 - (0.2 + 0.3) / 2 = 0.05.
    interval = _gain(30, 40).interval
    assert interval is not None
    low, high = interval
    lines = report.splitlines()
    assert lines[2] == (
        '**At the largest budget and equal FLOPs, upcycled against cpt '
        '(continued pretraining), of 6 comparisons: better in 4, worse in 2.**'
    )
    assert lines[4].startswith('- small, medium, x0.4 of pretraining (')
    assert lines[5:8] == [
        '  - final training loss: better, 0.1000 nats per token lower (95 %: '
        '-0.1000 to -0.1000 over 2 seeds).',
        '  - loss on held-out web: worse, 0.5000 nats per token higher '
        '(95 %: +0.5000 to +0.5000 over 2 seeds).',
        '  - Core Average: better, 0.0500 higher (95 %: +0.0500 to +0.0500 '
        f'over 2 seeds; {low:+.4f} to {high:+.4f} over examples).',
    ]


@pytest.mark.parametrize(
    ('upcycled', 'verdicts'),
    [
        (0.5, 'better in 1, not told apart in 1'),
        (0.31, 'better on these examples only in 1, not told apart in 1'),
        (0.3, 'not told apart in 2'),
        (0.29, 'worse on these examples only in 1, not told apart in 1'),
        (0.1, 'worse in 1, not told apart in 1'),
    ],
)
def test_quality_is_told_apart_over_examples_too(
    tmp_path: Path,
    upcycled: float,
    verdicts: str,
):
    grid = make_grid(
        tmp_path,
        durations={'long': '10000ba'},
        fractions=(0.4, ),
        seeds=(1, 2),
        has_gauntlet=True,
    )

    def measure(run: Run) -> Measured:
        accuracy = upcycled if run.place.arm == 'upcycled' else 0.3
        return Measured(accuracies=(accuracy, accuracy))

    # The losses are alike.
    lines = lines_of(make_results(grid, measure), tmp_path)
    assert lines[2].endswith(f'of 2 comparisons: {verdicts}.**')


def test_verdict_without_intervals(tmp_path: Path):
    lines = lines_of(plain_study(tmp_path, seeds=(1, )), tmp_path)
    assert lines[2].endswith(
        'of 1 comparison: ahead (one seed, no interval) in 1.**'
    )
    assert lines[5] == (
        '  - final training loss: ahead (one seed, no interval), 0.3000 nats '
        'per token lower.'
    )
    row = '| long | cpt | 0.1 | 1 | 1,000 | 1.280e+05 | 8.685e+10 | 2.900 (n/a) |'
    assert row in lines


def test_verdict_is_honest_where_upcycling_loses(tmp_path: Path):
    study = plain_study(tmp_path, seeds=(1, ), fractions=(0.1, ))
    lines = lines_of(study, tmp_path)
    assert lines[2].endswith(': behind (one seed, no interval) in 1.**')
    assert lines[5].endswith('no interval), 0.1000 nats per token higher.')


def test_verdict_of_equals(tmp_path: Path):
    grid = make_grid(
        tmp_path,
        durations={'long': '10000ba'},
        fractions=(0.4, ),
        seeds=(1, ),
    )
    lines = lines_of(make_results(grid, lambda run: Measured()), tmp_path)
    assert lines[2].endswith(': not told apart in 1.**')


def test_result_table(report: str):
    cpt, upcycled = (
        next(line
             for line in report.splitlines()
             if line.startswith(start))
        for start in ('| medium | cpt | 0.2 |', '| medium | upcycled | 0.2 |')
    )
    # Seeds 2.80 and 2.82; all 6 points of the arm have variance 2e-4.
    half = stats.t.ppf(0.975, 6) * sqrt(2e-4 / 2)
    interval = f'({2.81 - half:.3f} to {2.81 + half:.3f})'
    # Core 0.25 of a start of 0.2; all seeds alike, and examples in pairs.
    relative = _gain(20, 30).relative_interval
    assert relative is not None
    low, high = relative
    assert cpt == (
        f'| medium | cpt | 0.2 | 2 | 2,000 | 8.720e+09 | 5.917e+15 | 2.810 '
        f'{interval} | 2.810 {interval} | 0.250 (0.250 to 0.250) | +25.0% '
        f'({low:+.1%} to {high:+.1%}) |'
    )
    assert '| 0.300 (0.300 to 0.300) | +50.0% (+' in upcycled


def test_relative_to_a_start_of_0_there_is_none(tmp_path: Path):
    grid = make_grid(
        tmp_path,
        durations={'long': '10000ba'},
        fractions=(0.4, ),
        seeds=(1, ),
        has_gauntlet=True,
    )
    study = make_results(
        grid,
        lambda run:
        Measured(accuracies=(0.5, 0.5) if run.place.arm else (0, 0)),
    )
    (row, ) = (
        line for line in lines_of(study, tmp_path)
        if line.startswith('| long | cpt |')
    )
    assert row.endswith('; examples) | n/a |')


def test_differences_and_break_even(tmp_path: Path):
    lines = lines_of(plain_study(tmp_path), tmp_path)
    # Pairs 0.10 and 0.12 at 0.1, -0.10 and -0.08, -0.30 and -0.28.
    half = stats.t.ppf(0.975, 3) * 0.01
    for fraction, value, verdict in (
        (0.1, 0.11, 'worse'),
        (0.2, -0.09, 'better'),
        (0.4, -0.29, 'better'),
    ):
        assert (
            f'| long | upcycled | {fraction} | {value:+.4f} '
            f'({value - half:+.4f} to {value + half:+.4f}) {verdict} |'
        ) in lines
    # From 0.11 behind at 0.1 to 0.09 ahead at 0.2: at 0.155 of 10000 steps of
    # 128 tokens each, which cost 8.685e11 FLOPs.
    assert (
        '| long | final training loss | upcycled | from x0.155 | 1.346e+11 | '
        '1.984e+05 | told apart |'
    ) in lines


@pytest.mark.parametrize(
    ('losses', 'row'),
    [
        ((1.0, 1.0), 'at every point (from x0.1) | - | - | no interval'),
        ((3.0, 3.0), 'not within the budget | - | - | no interval'),
        (
            (1.0, 3.0),
            'not within the budget (only at x0.1) | - | - | no interval',
        ),
    ],
)
def test_break_even_without_a_crossing(
    tmp_path: Path,
    losses: tuple[float, float],
    row: str,
):
    grid = make_grid(
        tmp_path,
        durations={'long': '10000ba'},
        fractions=(0.1, 0.4),
        seeds=(1, ),
    )
    of_fraction = dict(zip((0.1, 0.4), losses))

    def measure(run: Run) -> Measured:
        is_cpt = run.place.arm != 'upcycled'
        return Measured(2.0 if is_cpt else of_fraction[run.place.budget])

    lines = lines_of(make_results(grid, measure), tmp_path)
    assert f'| long | final training loss | upcycled | {row} |' in lines


def test_break_even_within_the_noise(tmp_path: Path):
    study = plain_study(tmp_path)

    def noisy(name: str, by: float) -> Any:
        result = study.results[name]
        return {name: replace(result, train_loss=result.train_loss + by)}

    results = {
        **study.results,
        **noisy('small_long_upcycled_0.1_s1', 2.0),
        **noisy('small_long_upcycled_0.1_s2', -2.0)
    }
    lines = lines_of(StudyResults(study.grid, results), tmp_path)
    (row, ) = (line for line in lines if '| from x0.155 |' in line)
    assert row.endswith('| within the noise |')


def test_sweep_table(report: str):
    assert (
        'upcycled, at medium, x0.1, seed 1:\n\n'
        '| learning rate | final training loss |  |\n'
        '| --- | ---: | ---: |\n'
        '| 5e-05 | 3.9000 |  |\n'
        '| 0.0001 | 2.8000 | chosen, the highest tried |\n'
    ) in report


def test_sweep_that_goes_on(tmp_path: Path):
    study = without(full_study(tmp_path), '.*_lr5e-05')
    lines = lines_of(study, tmp_path)
    assert '| 5e-05 | not finished |  |' in lines
    assert '| 0.0001 | 2.8000 |  |' in lines


def test_a_rate_that_diverged_is_not_chosen(tmp_path: Path):
    study = full_study(tmp_path)
    results = {
        name:
        replace(result, train_loss=np.full(len(result.train_loss), np.nan))
        if '_lr5e-05' in name else result
        for name, result in study.results.items()
    }
    lines = lines_of(StudyResults(study.grid, results), tmp_path)
    assert '| 5e-05 | nan |  |' in lines
    assert '| 0.0001 | 2.8000 | chosen, the highest tried |' in lines


def test_task_table(report: str):
    low, high = binomial_interval(0.4, 100)
    (row, ) = (
        line for line in re.split('long, x0.4:\n', report)[1].splitlines()
        if line.startswith('| second/0-shot |')
    )
    assert row.startswith('| second/0-shot | 100 | 20.0% (')
    assert row.endswith(f'| 40.0% ({low:.1%} to {high:.1%}) |')
    assert '| task | examples | dense start | cpt | upcycled |' in report
    assert '| **Core Average** |  | 0.200 (' in report


def test_serving_table(report: str):
    # 1000 / 400.
    assert (
        '| upcycled | long | 0.4 | 2.50 (2.50 to 2.50) | 0.300 (0.300 to '
        '0.300) |'
    ) in report
    assert '### Quality against serving cost (CPU, dummy weights)' in report
    assert 'Left out' not in report.split('### Quality against')[1].split('##'
                                                                         )[0]


def test_arms_without_serving_results_are_named(tmp_path: Path):
    serving = tmp_path / 'serving.json'
    only_dense = {**SERVING, 'models': SERVING['models'][:1]}
    serving.write_text(json.dumps(only_dense))
    text = write_report(
        plain_study(tmp_path),
        tmp_path / 'out',
        serving,
    ).read_text()
    assert (
        'Left out: upcycled, as the serving results have no model of size '
        'small with its experts and top-k, or no dense one.'
    ) in text
    assert '| cpt | long | 0.4 | 1.00 (1.00 to 1.00) | 2.610 (' in text


def test_names_are_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    module = 'foundry_upcycle.study.report.report'
    monkeypatch.setattr(f'{module}.render', lambda *_: b'')  # That is slow.
    grid = make_grid(
        tmp_path,
        durations={'__d__': '10000ba'},
        fractions=(0.4, ),
        seeds=(1, ),
        arms=('cpt', '__up__'),
        models=('__m__', ),
        sweep=(5e-5, 1e-4),
        texts=(f'{ODD} 1', ),
        has_gauntlet=True,
    )
    grid = replace(grid, study=replace(grid.study, name=f'{ODD} 2'))
    measured = Measured(2.0, {f'{ODD} 1': 2.0}, (0.2, 0.2))
    serving = json.loads(json.dumps(SERVING).replace('small', '__m__'))
    serving['labels'] = [f'{ODD} 3']
    (tmp_path / 'serving.json').write_text(json.dumps(serving))
    path = write_report(
        make_results(grid, lambda run: measured),
        tmp_path / 'out',
        tmp_path / 'serving.json',
    )
    found = Rendered(path.read_text())
    assert set(found.tags) <= TAGS
    assert found.tags.count('img') == 4
    for name in ('__d__', '__m__', '__up__', *(f'{ODD} {n}' for n in '123')):
        assert name in found.text
    page = path.with_suffix('.html').read_text()
    assert page.count('<img src="data:image/svg+xml;base64,') == 4
    assert page.count('<img') == 4


def test_seconds(report: str):
    # 100e9 / 4.36e6 steps, at 678,528 FLOPs a token; 0.4 of them.
    assert '| small_long | 22,936 | 6.785e+16 | 100 |' in report
    assert '| small_long_upcycled_0.4_s2 | 6,106 | 2.714e+16 | 12 |' in report
    # Two dense ones, 12 of cpt, 12 upcycled; one of the sweep has none.
    assert f'| {2 * 100 + 12 * 10 + 12 * 12.3:,.0f} |' in report
    assert '| small_medium_upcycled_0.1_s1_lr5e-05 | 666 | 2.960e+15 | - |' in (
        report
    )


def test_how_to_read_it(report: str):
    assert 'in whole steps (at most 0.0' in report
    assert 'Core Average is of the gauntlet synthetic' in report
    assert 'Intervals are of 95 % over seeds' in report
    assert '6 x active parameters' in report
    assert 'llm-foundry 0.22' in report
    assert 'arXiv 2411.08968' in report
    assert 'Not all runs are there' not in report


def test_missing_runs_are_named(tmp_path: Path):
    study = without(full_study(tmp_path), '.*_cpt_0.4_s.', 'small_long')
    results = dict(study.results)
    name = 'small_long_upcycled_0.2_s2'
    results[name] = replace(results[name], evaluation=None)
    lines = lines_of(StudyResults(study.grid, results), tmp_path)
    assert lines[2] == (
        '**Not all runs are there.** Not trained to the end, and left out: '
        '`small_long`, `small_medium_cpt_0.4_s1`, `small_medium_cpt_0.4_s2`, '
        '`small_long_cpt_0.4_s1`, `small_long_cpt_0.4_s2`.'
    )
    assert lines[4] == (
        f'**Not all runs are there.** Not evaluated to the end, and left out: '
        f'`{name}`.'
    )
    # The largest fraction that both have.
    assert any(line.startswith('- small, long, x0.2 of') for line in lines)
    assert not any(line.startswith('- small, long, x0.4 of') for line in lines)


def test_of_many_missing_runs_the_first_are_named(tmp_path: Path):
    study = without(full_study(tmp_path), r'.*_(cpt|upcycled)_0\.[24]_.*')
    lines = lines_of(study, tmp_path)
    n_names = lines[2].count('`') // 2
    n_missing = len(study.grid.trainings) - len(study.results)
    assert n_names == 12 and n_missing > 12
    assert lines[2].endswith(f'and {n_missing - 12} more.')


def test_best_of_a_sweep_that_is_not_evaluated_is_named(tmp_path: Path):
    study = full_study(tmp_path)
    name = 'small_medium_upcycled_0.1_s1_lr0.0001'
    results = {
        **study.results, name: replace(study.results[name], evaluation=None)
    }
    lines = lines_of(StudyResults(study.grid, results), tmp_path)
    assert lines[2].endswith(
        f'Not evaluated to the end, and left out: `{name}`.'
    )
    assert '| 0.0001 | 2.8000 | chosen, the highest tried |' in lines


def test_runs_that_diverged_are_named(tmp_path: Path):
    study = plain_study(tmp_path)
    name = 'small_long_upcycled_0.4_s1'
    losses = np.full(study.grid[name].n_steps, np.nan)
    results = {
        **study.results, name: replace(study.results[name], train_loss=losses)
    }
    lines = lines_of(StudyResults(study.grid, results), tmp_path)
    assert lines[2].startswith('**Runs diverged.**')
    assert lines[2].endswith(f'means: `{name}`.')


def test_sweeps_that_diverged_are_named(tmp_path: Path):
    study = full_study(tmp_path)
    sweep = [
        name for name in study.results
        if re.fullmatch('small_medium_upcycled_0.1_s1_lr.*', name)
    ]
    assert len(sweep) == 2
    results = {
        name:
        replace(result, train_loss=np.full(len(result.train_loss), np.nan))
        if name in sweep else result
        for name, result in study.results.items()
    }
    lines = lines_of(StudyResults(study.grid, results), tmp_path)
    (line, ) = (line for line in lines if line.startswith('**Runs diverged'))
    assert all(f'`{name}`' in line for name in sweep)


def test_the_largest_budget_has_one_seed_of_both(tmp_path: Path):
    # At 0.4 each arm has a seed that the other has not.
    study = without(
        plain_study(tmp_path),
        'small_long_cpt_0.4_s2',
        'small_long_upcycled_0.4_s1',
    )
    lines = lines_of(study, tmp_path)
    assert any(
        line.startswith('- small, long, x0.2 of pretraining') for line in lines
    )


def test_nothing_to_compare_yet(tmp_path: Path):
    study = without(plain_study(tmp_path), '.*_cpt_.*')
    assert lines_of(study, tmp_path)[4].startswith('**No comparison yet**')


def test_no_dense_arm(tmp_path: Path):
    grid = make_grid(
        tmp_path,
        durations={'long': '10000ba'},
        fractions=(0.4, ),
        seeds=(1, ),
        arms=('upcycled', ),
    )
    lines = lines_of(make_results(grid, lambda run: Measured()), tmp_path)
    assert lines[2].startswith('**No comparison**: it takes an arm that is')
    assert not any('for good?' in line for line in lines)
    assert '![small: gains against FLOPs](figures/gains_small.png)' in lines


def test_a_model_that_has_not_begun(tmp_path: Path):
    grid = make_grid(
        tmp_path,
        durations={'long': '10000ba'},
        fractions=(0.4, ),
        seeds=(1, ),
        models=('small', 'large'),
    )

    def measure(run: Run) -> Optional[Measured]:
        return Measured() if run.place.model == 'small' else None

    lines = lines_of(make_results(grid, measure), tmp_path)
    title = lines.index('## large: tables')
    assert lines[title + 2] == 'No run of this model is finished.'


@pytest.mark.parametrize(
    ('gone', 'what'),
    [
        ('small_long', 'dense start'),
        ('small_long_.*', 'second phase'),
    ],
)
def test_too_little_is_refused(tmp_path: Path, gone: str, what: str):
    study = without(plain_study(tmp_path), gone)
    with pytest.raises(
            ConfigError,
            match=f"folder='runs/synthetic': no {what} of the study synthetic is "
            'finished in it. Fix: .*`foundry-upcycle study run`',
    ):
        write_report(study, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_bad_serving_results_are_refused_before_anything(tmp_path: Path):
    with pytest.raises(ConfigError, match='serving=.*there is no such file'):
        write_report(
            plain_study(tmp_path),
            tmp_path / 'out',
            tmp_path / 'none.json',
        )
    assert not (tmp_path / 'out').exists()
