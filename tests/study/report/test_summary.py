from dataclasses import replace
from math import nan, sqrt
from pathlib import Path
from typing import Any, Optional

import pytest
from scipy import stats
from study.report.synthetic import (
    Measured,
    make_grid,
    make_results,
    plain_study,
)

from foundry_upcycle.gauntlet.scores import compare, score
from foundry_upcycle.study.grid import Place, Run
from foundry_upcycle.study.report.metrics import Mean, Metric
from foundry_upcycle.study.report.summary import Summary
from foundry_upcycle.study.results import Evaluation, StudyResults

# Of 3 points with 2 seeds each.
T = stats.t.ppf(0.975, 3)


def at(arm: Optional[str], fraction: float = 0.0) -> Place:
    return Place('small', 'long', arm, fraction)


@pytest.fixture
def summary(tmp_path: Path) -> Summary:
    return Summary(plain_study(tmp_path))


def of_tasks(
    folder: Path,
    accuracies: dict[str, tuple[float, ...]],
    seeds: tuple[int, ...] = (1, ),
    **settings: Any,
) -> StudyResults:
    """A study of one point; ``accuracies`` by arm, ``start`` of the dense."""
    grid = make_grid(
        folder,
        durations={'long': '10000ba'},
        fractions=(0.4, ),
        seeds=seeds,
        has_gauntlet=True,
        **settings,
    )

    def measure(run: Run) -> Measured:
        return Measured(accuracies=accuracies[run.place.arm or 'start'])

    return make_results(grid, measure)


def with_loss(study: StudyResults, name: str, loss: float) -> StudyResults:
    result = study.results[name]
    diverged = replace(result, train_loss=result.train_loss * loss)
    return StudyResults(study.grid, {**study.results, name: diverged})


def test_means_and_intervals_are_over_seeds(summary: Summary):
    (metric, ) = summary.metrics
    # Seeds 2.9 and 2.92 at 0.1; 0.02 apart at all points: variance 2e-4.
    cpt = summary.mean(metric, at('cpt', 0.1))
    assert cpt is not None
    assert cpt.value == pytest.approx(2.91)
    half = T * sqrt(2e-4 / 2)
    assert cpt.interval == pytest.approx((2.91 - half, 2.91 + half))
    assert (cpt.over, cpt.n_seeds) == ('seeds', 2)
    # Seeds 2.3 and 2.34 at 0.4; 0.04 apart: variance 8e-4.
    upcycled = summary.mean(metric, at('upcycled', 0.4))
    assert upcycled is not None
    half = T * sqrt(8e-4 / 2)
    assert upcycled.interval == pytest.approx((2.32 - half, 2.32 + half))


def test_differences_are_paired_by_seed(summary: Summary):
    (metric, ) = summary.metrics
    # Seeds -0.30 and -0.28, 0.02 apart at all points.
    found = summary.difference(metric, at('upcycled', 0.4))
    assert found is not None
    assert found.value == pytest.approx(-0.29)
    half = T * sqrt(2e-4 / 2)
    assert found.interval == pytest.approx((-0.29 - half, -0.29 + half))
    assert found.verdict(metric) == 'better'


def test_dense_start_has_no_interval(summary: Summary):
    (metric, ) = summary.metrics
    assert summary.mean(metric, at(None)) == Mean(3.5, None, '', 1)


def test_a_point_of_one_seed_has_the_spread_of_the_others(tmp_path: Path):
    study = plain_study(tmp_path)
    results = dict(study.results)
    del results['small_long_cpt_0.4_s2']
    summary = Summary(StudyResults(study.grid, results))
    (metric, ) = summary.metrics
    found = summary.mean(metric, at('cpt', 0.4))
    assert found is not None and found.n_seeds == 1
    half = stats.t.ppf(0.975, 2) * sqrt(2e-4)
    assert found.interval == pytest.approx((2.6 - half, 2.6 + half))
    # The difference is of the seed that both have.
    difference = summary.difference(metric, at('upcycled', 0.4))
    assert difference is not None and difference.n_seeds == 1
    assert difference.value == pytest.approx(-0.3)


def test_no_difference_without_a_common_seed(tmp_path: Path):
    study = plain_study(tmp_path)
    results = dict(study.results)
    del results['small_long_cpt_0.4_s2']
    del results['small_long_upcycled_0.4_s1']
    summary = Summary(StudyResults(study.grid, results))
    (metric, ) = summary.metrics
    assert summary.difference(metric, at('upcycled', 0.4)) is None


def test_one_seed_has_no_interval_of_losses(tmp_path: Path):
    summary = Summary(plain_study(tmp_path, seeds=(1, )))
    (metric, ) = summary.metrics
    found = summary.mean(metric, at('cpt', 0.1))
    assert found is not None and found.interval is None
    difference = summary.difference(metric, at('upcycled', 0.4))
    assert difference is not None
    assert difference.verdict(metric) == 'no interval'


@pytest.mark.parametrize(
    ('interval', 'of_loss', 'of_score'),
    [
        ((0.1, 0.2), 'worse', 'better'),
        ((-0.2, -0.1), 'better', 'worse'),
        ((-0.1, 0.2), 'not told apart', 'not told apart'),
        # But for rounding, its end is 0.
        ((1e-17, 0.2), 'not told apart', 'not told apart'),
        (None, 'no interval', 'no interval'),
    ],
)
def test_verdicts(
    interval: Optional[tuple[float, float]],
    of_loss: str,
    of_score: str,
):
    mean = Mean(0.1, interval, '', 2)
    assert mean.verdict(Metric('loss', 'loss')) == of_loss
    higher = Metric('score', 'score', '', higher_is_better=True)
    assert mean.verdict(higher) == of_score


def test_metrics_are_what_was_measured(tmp_path: Path):
    grid = make_grid(
        tmp_path,
        durations={'long': '10000ba'},
        fractions=(0.4, ),
        seeds=(1, ),
        texts=('web', 'code'),
        has_gauntlet=True,
    )
    losses = {'web': 2.5, 'code': 1.5}
    study = make_results(
        grid,
        lambda run: Measured(2.0, losses, (0.2, 0.4)),
    )
    summary = Summary(study)
    assert [metric.title for metric in summary.metrics] == [
        'final training loss',
        'loss on held-out code',
        'loss on held-out web',
        'Core Average',
    ]
    means = [summary.mean(metric, at(None)) for metric in summary.metrics]
    values = [mean.value for mean in means if mean]
    assert values == pytest.approx([2.0, 1.5, 2.5, 0.3])
    assert summary.best_measure.title == 'Core Average'


def test_what_stands_for_quality(summary: Summary, tmp_path: Path):
    assert summary.best_measure.title == 'final training loss'
    grid = make_grid(
        tmp_path / 'texts',
        durations={'long': '10000ba'},
        fractions=(0.4, ),
        seeds=(1, ),
        texts=('web', ),
    )
    study = make_results(grid, lambda run: Measured(2.0, {'web': 2.5}))
    assert Summary(study).best_measure.title == 'loss on held-out web'


def test_quality_of_one_seed_has_intervals_over_examples(tmp_path: Path):
    accuracies = {
        'start': (0.2, 0.2),
        'cpt': (0.3, 0.4),
        'upcycled': (0.5, 0.6)
    }
    study = of_tasks(tmp_path, accuracies)
    summary = Summary(study)
    assert summary.quality is not None
    gauntlet = summary.quality.gauntlet
    answers = {
        arm: study.results[f'small_long_{arm}_0.4_s1'].evaluation.tasks
        for arm in ('cpt', 'upcycled')
    }
    metric = summary.quality.metric
    found = summary.mean(metric, at('upcycled', 0.4))
    assert found is not None and found.over == 'examples'
    expected = score(answers['upcycled'], gauntlet).averages['core_average']
    assert found.value == pytest.approx(0.55)
    assert found.interval == expected.interval
    difference = summary.difference(metric, at('upcycled', 0.4))
    change = compare(answers['upcycled'], answers['cpt'], gauntlet)
    assert difference is not None and difference.over == 'examples'
    assert difference.value == pytest.approx(0.2)
    assert difference.interval == change.averages['core_average'].interval
    assert difference.interval == summary.over_examples(at('upcycled', 0.4))


def test_over_examples_several_seeds_are_no_more_examples(tmp_path: Path):
    accuracies = {
        'start': (0.2, 0.2),
        'cpt': (0.3, 0.4),
        'upcycled': (0.5, 0.6)
    }
    one = Summary(of_tasks(tmp_path / 'one', accuracies))
    # Both seeds answer alike.
    two = Summary(of_tasks(tmp_path / 'two', accuracies, seeds=(1, 2)))
    assert two.over_examples(
        at('upcycled', 0.4)
    ) == pytest.approx(one.over_examples(at('upcycled', 0.4)), )


def test_over_examples_a_seed_alone_is_left_out(tmp_path: Path):
    accuracies = {
        'start': (0.2, 0.2),
        'cpt': (0.3, 0.4),
        'upcycled': (0.5, 0.6)
    }
    study = of_tasks(tmp_path, accuracies, seeds=(1, 2))
    both = Summary(study).over_examples(at('upcycled', 0.4))
    results = dict(study.results)
    del results['small_long_cpt_0.4_s2']
    summary = Summary(StudyResults(study.grid, results))
    # The seeds answer alike.
    assert summary.over_examples(at('upcycled', 0.4)) == pytest.approx(both)


def test_a_task_that_one_run_lacks_is_left_out_for_all(tmp_path: Path):
    accuracies = {'start': (0.2, 0.2), 'cpt': (0.3, 0.4), 'upcycled': (0.5, )}
    summary = Summary(of_tasks(tmp_path, accuracies))
    assert summary.quality is not None
    assert summary.quality.gauntlet.left_out == ('second/0-shot', )
    found = summary.mean(summary.quality.metric, at('cpt', 0.4))
    assert found is not None and found.value == pytest.approx(0.3)


def test_no_quality_without_a_common_task(tmp_path: Path):
    accuracies = {
        'start': (0.2, 0.2),
        'cpt': (0.3, 0.4),
        'upcycled': (0.5, 0.6)
    }
    study = of_tasks(tmp_path, accuracies)
    name = 'small_long_upcycled_0.4_s1'
    answers = study.results[name].evaluation.tasks
    without = replace(
        study.results[name],
        evaluation=Evaluation({}, replace(answers, tasks={})),
    )
    results = {**study.results, name: without}
    assert Summary(StudyResults(study.grid, results)).quality is None


def test_first_dense_arm_is_compared_with(tmp_path: Path):
    settings = {
        'durations': {
            'long': '10000ba'
        },
        'fractions': (0.4, ),
        'seeds': (1, )
    }
    grid = make_grid(
        tmp_path,
        arms=('upcycled', 'cpt_low', 'cpt_high'),
        **settings,
    )
    losses = {'upcycled': 2.0, 'cpt_low': 2.5, 'cpt_high': 2.75, None: 3.0}
    study = make_results(grid, lambda run: Measured(losses[run.place.arm]))
    summary = Summary(study)
    (model, ) = summary.models
    assert summary.reference(model) == 'cpt_low'
    assert summary.compared(model) == ('upcycled', 'cpt_high')
    difference = summary.difference(summary.metrics[0], at('cpt_high', 0.4))
    assert difference is not None and difference.value == 0.25


def test_without_a_dense_arm_nothing_is_compared(tmp_path: Path):
    grid = make_grid(
        tmp_path,
        durations={'long': '10000ba'},
        fractions=(0.4, ),
        seeds=(1, ),
        arms=('upcycled', 'other'),
    )
    summary = Summary(make_results(grid, lambda run: Measured()))
    (model, ) = summary.models
    assert summary.reference(model) is None
    assert summary.compared(model) == ()
    assert summary.difference(summary.metrics[0], at('other', 0.4)) is None
    assert summary.over_examples(at('other', 0.4)) is None


def test_shared_fractions(tmp_path: Path):
    study = plain_study(tmp_path)
    results = {
        name: result
        for name, result in study.results.items()
        if not name.startswith('small_long_upcycled_0.4')
    }
    summary = Summary(StudyResults(study.grid, results))
    (model, ) = summary.models
    assert summary.shared(model, 'long', 'cpt')[0] == 0.4
    assert summary.shared(model, 'long', 'cpt', 'upcycled')[0] == 0.2
    assert summary.largest_begun(model, 'long') == 0.2
    apart = {
        name: result
        for name, result in results.items()
        if 'cpt_0.4' in name or 'upcycled_0.1' in name
    }
    summary = Summary(StudyResults(study.grid, apart))
    assert summary.shared(model, 'long', 'cpt', 'upcycled') == []
    assert summary.largest_begun(model, 'long') == 0.4


def test_a_run_that_diverged_is_left_out_by_name(tmp_path: Path):
    name = 'small_long_cpt_0.4_s2'
    summary = Summary(with_loss(plain_study(tmp_path), name, nan))
    assert summary.diverged == (name, )
    (metric, ) = summary.metrics
    found = summary.mean(metric, at('cpt', 0.4))
    assert found is not None
    assert (found.value, found.n_seeds) == (pytest.approx(2.6), 1)
