import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, Optional

import numpy as np
import pytest
import torch
import yaml
from llmfoundry.callbacks.eval_gauntlet_callback import (
    EvalGauntlet,
    calculate_named_averages,
)

from foundry_upcycle.errors import ConfigError
from foundry_upcycle.gauntlet.gauntlets import (
    FOLDER,
    Benchmark,
    Gauntlet,
    read_gauntlet,
)
from foundry_upcycle.gauntlet.intervals import binomial_interval
from foundry_upcycle.gauntlet.results import ModelResults, Part
from foundry_upcycle.gauntlet.scores import (
    Change,
    compare,
    relative_change,
    score,
)

COPA = Benchmark('copa', 0, 0.5)
PIQA = Benchmark('piqa', 0, 0.5)
LAMBADA = Benchmark('lambada', 0, 0.0)
SMALL = Gauntlet(
    'small',
    {
        'sense': (COPA, PIQA),
        'language': (LAMBADA, ),
        'all_tasks': (COPA, PIQA, LAMBADA),
    },
    {
        'by_category': ('sense', 'language'),
        'by_task': ('all_tasks', ),
    },
)


def results_of(
    accuracies: dict[str, float],
    n: Optional[int] = 1000,
    kept: bool = False,
    label: str = 'moe',
) -> ModelResults:
    """Label of a part -> accuracy; the first examples are those right."""
    tasks: dict[str, Any] = {}
    for name, accuracy in accuracies.items():
        right = np.arange(n) < accuracy * n if n and kept else None
        part = Part('InContextLearningLMAccuracy', accuracy, n, right)
        tasks.setdefault('/'.join(name.split('/')[:2]), {})[name] = part
    return ModelResults(label, f'{label}.json', tasks)


def foundrys(name: str, results: ModelResults) -> dict[str, float]:
    """What Foundry's own callback makes of the results."""
    content = yaml.safe_load((FOLDER / f'{name}.yaml').read_text())
    settings = content['eval_gauntlet']
    parts = {
        label: part
        for task in results.tasks.values()
        for label, part in task.items()
    }
    callback = EvalGauntlet(
        logger_keys=[
            f'metrics/{label}/{part.metric}' for label, part in parts.items()
        ],
        benchmark_sizes={},  # Asked for, whatever the weighting.
        **settings,
    )
    metrics = {}
    for label, part in parts.items():
        value = torch.tensor(part.accuracy, dtype=torch.float64)
        metric = SimpleNamespace(compute=lambda value=value: value)
        metrics[label] = {part.metric: metric}
    state: Any = SimpleNamespace(eval_metrics=metrics)
    logger: Any = None
    return {
        key.rpartition('/')[2]: value
        for key, value in callback.eval_after_all(state, logger).items()
    }


def all_parts(gauntlet: Gauntlet) -> list[str]:
    labels = [benchmark.label for benchmark in gauntlet.benchmarks]
    return [
        part for label in labels
        for part in ([f'{label}/{i}' for i in range(5)] if label
                     .startswith(('mmlu', 'jeopardy')) else [label])
    ]


@pytest.mark.parametrize('name', ['paper', 'v0.3'])
def test_scores_are_foundrys(name: str):
    gauntlet = read_gauntlet(name)
    rng = np.random.default_rng(0)
    results = results_of({p: rng.random() for p in all_parts(gauntlet)})
    scores = score(results, gauntlet, n_replicates=10)
    expected = foundrys(name, results)
    found = scores.categories | scores.averages
    assert {
        name: figure.value
        for name, figure in found.items()
    } == pytest.approx(
        expected, rel=1e-13
    )
    assert not scores.missing
    assert len(scores.tasks) == 31


def test_both_core_averages():
    # Above chance, copa has 0.2, piqa 0.4 and lambada 0.9.
    accuracies = {'copa/0-shot': 0.6, 'piqa/0-shot': 0.7, 'lambada/0-shot': 0.9}
    scores = score(results_of(accuracies), SMALL)
    assert scores.label == 'moe'
    assert scores.accuracies['copa/0-shot'].value == pytest.approx(0.6)
    assert scores.tasks['copa/0-shot'].value == pytest.approx(0.2)
    assert scores.categories['sense'].value == pytest.approx(0.3)
    # (0.3 + 0.9) / 2, and (0.2 + 0.4 + 0.9) / 3.
    assert scores.averages['by_category'].value == pytest.approx(0.6)
    assert scores.averages['by_task'].value == pytest.approx(0.5)


def test_a_task_of_several_parts():
    # By Foundry's rule, however many examples each has.
    results = results_of({'copa/0-shot/a': 0.6, 'copa/0-shot/b': 1.0}, n=100)
    scores = score(results, SMALL)
    assert scores.accuracies['copa/0-shot'].value == pytest.approx(0.8)
    assert scores.n_examples == {'copa/0-shot': 200}
    assert scores.n_parts == {'copa/0-shot': 2}


def test_an_average_that_names_a_category_twice():
    # Foundry's, which asks whether a category is among the names.
    scores = score(
        results_of({
            'copa/0-shot': 0.6,
            'lambada/0-shot': 0.9,
        }),
        Gauntlet(
            '',
            SMALL.categories,
            {'twice': ('sense', 'language', 'sense')},
        ),
    )
    expected = calculate_named_averages(
        {'twice': ['sense', 'language', 'sense']},
        {
            name: figure.value
            for name, figure in scores.categories.items()
        },
    )
    # (0.2 + 0.9) / 2.
    assert expected == {'twice': pytest.approx(0.55)}
    assert scores.averages['twice'].value == pytest.approx(expected['twice'])


def test_missing_tasks_are_named():
    results = results_of({'copa/0-shot': 0.6, 'other/0-shot': 0.1})
    scores = score(results, SMALL)
    assert scores.missing == ('piqa/0-shot', 'lambada/0-shot')
    assert list(scores.tasks) == ['copa/0-shot']
    # The category of lambada alone is left out.
    assert list(scores.categories) == ['sense', 'all_tasks']
    for figure in (*scores.categories.values(), *scores.averages.values()):
        assert figure.value == pytest.approx(0.2)


def test_averages_without_any_task():
    scores = score(
        results_of({'lambada/0-shot': 0.6}),
        Gauntlet(
            'small',
            SMALL.categories,
            {
                'of_sense': ('sense', ),
                'by_task': ('all_tasks', ),
            },
        ),
    )
    assert list(scores.averages) == ['by_task']


@pytest.mark.parametrize(
    ('key', 'value'),
    [
        ('weighting', 'SAMPLE_SZ'),
        ('rescale_accuracy', False),
    ],
)
def test_a_gauntlet_that_scores_otherwise(key: str, value: Any):
    results = results_of({'copa/0-shot': 0.6})
    other = replace(SMALL, scoring={**SMALL.scoring, key: value})
    match = f'eval_gauntlet.{key}={value!r}: scores are computed by equal'
    with pytest.raises(ConfigError, match=match):
        score(results, other)
    with pytest.raises(ConfigError, match=match):
        compare(results, results, other)


def test_no_task_at_all():
    with pytest.raises(
            ConfigError,
            match='moe was measured on no task of small, but on other/0-shot. '
            'Fix: evaluate it on tasks such as copa/0-shot',
    ):
        score(results_of({'other/0-shot': 0.1}), SMALL)


def test_intervals():
    accuracies = {'copa/0-shot': 0.6, 'piqa/0-shot': 0.7, 'lambada/0-shot': 0.9}
    scores = score(results_of(accuracies), SMALL, n_replicates=40_000)

    def half(figure: Any) -> float:
        low, high = figure.interval
        assert low < figure.value < high
        return (high - low) / 2

    # 1.96 times the standard deviations at n = 1000, which are
    # sqrt(0.24/1000), sqrt(0.21/1000), sqrt(0.09/1000), and twice as much
    # above a chance of 0.5.
    copa, piqa, lambada = 1.96 * np.sqrt([0.24e-3, 0.21e-3, 0.09e-3])
    averages = scores.averages
    by_task = math.hypot(2 * copa, 2 * piqa, lambada) / 3
    by_category = math.hypot(copa, piqa, lambada) / 2
    for found, expected in (
        (half(scores.accuracies['copa/0-shot']), copa),
        (half(scores.tasks['copa/0-shot']), 2 * copa),
        (half(scores.categories['sense']), math.hypot(copa, piqa)),
        (half(averages['by_category']), by_category),
        (half(averages['by_task']), by_task),
    ):
        assert found == pytest.approx(expected, rel=0.03)


def test_what_rests_on_one_part_has_wilsons_interval():
    results = results_of({'copa/0-shot': 0.02, 'piqa/0-shot': 0.7}, n=50)
    alone = Gauntlet('', {'a': (COPA, ), 'b': (PIQA, )}, {'one': ('a', )})
    scores = score(results, alone)
    wilsons = np.array(binomial_interval(0.02, 50))
    assert scores.accuracies['copa/0-shot'].interval == pytest.approx(wilsons)
    # Twice as far from a chance of 0.5.
    above_chance = 2 * wilsons - 1
    for figure in (
            scores.tasks['copa/0-shot'],
            scores.categories['a'],
            scores.averages['one'],
    ):
        assert figure.interval == pytest.approx(above_chance)


def test_a_task_in_two_categories_is_drawn_once():
    twice = Gauntlet('', {'a': (COPA, ), 'b': (COPA, )}, {'both': ('a', 'b')})
    for accuracy in (0.6, 1.0):
        scores = score(results_of({'copa/0-shot': accuracy}), twice)
        assert scores.averages['both'].interval == pytest.approx(
            scores.tasks['copa/0-shot'].interval,
        )


def test_no_interval_without_a_number_of_examples():
    scores = score(results_of({'copa/0-shot': 0.6}, n=None), SMALL)
    assert scores.n_examples == {'copa/0-shot': None}
    assert scores.tasks['copa/0-shot'].interval is None
    assert scores.averages['by_task'].interval is None


def test_a_gauntlet_makes_no_difference_to_a_task():
    results = results_of({'copa/0-shot': 0.6, 'piqa/0-shot': 0.7})
    other = Gauntlet('', {'a': (PIQA, ), 'b': (COPA, )}, {})
    assert score(results, SMALL).tasks == score(results, other).tasks


def test_comparison():
    base = {'copa/0-shot': 0.6, 'piqa/0-shot': 0.7, 'lambada/0-shot': 0.5}
    better = base | {'copa/0-shot': 0.7}
    found = compare(
        results_of(better),
        results_of(base, label='dense'),
        SMALL,
    )
    assert (found.label, found.baseline) == ('moe', 'dense')
    assert not found.left_out
    change = found.accuracies['copa/0-shot']
    assert change.difference == pytest.approx(0.1)
    assert change.relative == pytest.approx(1 / 6)
    assert (change.verdict, change.paired) == ('higher', False)
    # Above chance 0.4 against 0.2.
    assert found.tasks['copa/0-shot'].relative == pytest.approx(1)
    assert found.tasks['piqa/0-shot'].verdict == 'not told apart'
    # The means of 0.4 and 0.4, of 0.2 and 0.4.
    assert found.categories['sense'].value == pytest.approx(0.4)
    assert found.categories['sense'].baseline == pytest.approx(0.3)
    # 0.1 / (0.3 + 0.5), where each is half of it.
    assert found.averages['by_category'].relative == pytest.approx(0.125)
    back = compare(results_of(base), results_of(better), SMALL)
    assert back.accuracies['copa/0-shot'].verdict == 'lower'


@pytest.mark.parametrize('kept', [True, False])
def test_a_small_difference_is_not_told_apart(kept: bool):
    found = compare(
        results_of({'copa/0-shot': 0.603}, kept=kept),
        results_of({'copa/0-shot': 0.600}, kept=kept),
        SMALL,
    )
    change = found.averages['by_task']
    assert (change.verdict, change.paired) == ('not told apart', kept)


def test_pairs_of_averages_tell_more_apart():
    better = {'copa/0-shot': 0.62, 'piqa/0-shot': 0.72}
    base = {'copa/0-shot': 0.60, 'piqa/0-shot': 0.70}

    def verdict(kept: bool) -> str:
        models = (results_of(part, kept=kept) for part in (better, base))
        return compare(*models, SMALL).averages['by_task'].verdict

    assert verdict(kept=True) == 'higher'
    assert verdict(kept=False) == 'not told apart'


def test_an_average_with_an_unpaired_task_is_not_paired():
    base = {'copa/0-shot': 0.60, 'piqa/0-shot': 0.70}
    mixed = results_of(base, kept=True)
    mixed.tasks['piqa/0-shot'].update(results_of(base).tasks['piqa/0-shot'], )
    found = compare(mixed, results_of(base, kept=True), SMALL)
    assert found.accuracies['copa/0-shot'].paired
    assert not found.averages['by_task'].paired


def test_tasks_that_one_lacks_are_left_out():
    both = {'copa/0-shot': 0.6}
    found = compare(
        results_of(both | {
            'piqa/0-shot': 0.9,
            'lambada/0-shot/a': 0.9,
        }),
        results_of(both | {
            'lambada/0-shot/b': 0.9,
        }),
        SMALL,
    )
    assert found.left_out == ('piqa/0-shot', 'lambada/0-shot')
    assert found.averages['by_category'].difference == pytest.approx(0)


def test_parts_in_another_order():
    parts = {'copa/0-shot/a': 0.6, 'copa/0-shot/b': 0.9}
    swapped = dict(reversed(parts.items()))
    found = compare(results_of(parts), results_of(swapped), SMALL)
    assert found.accuracies['copa/0-shot'].difference == pytest.approx(0)


def test_nothing_in_common():
    with pytest.raises(
            ConfigError,
            match="'dense': it has no task of small in common with moe",
    ):
        compare(
            results_of({'copa/0-shot': 0.6}),
            results_of({'piqa/0-shot': 0.6}, label='dense'),
            SMALL,
        )


def test_verdict_without_interval():
    change = Change(0.5, -0.1, None, paired=False)
    assert change.verdict == 'not known'
    assert math.isnan(change.relative)


def test_relative_change():
    # (4 - 5) / 5
    assert relative_change(4.0, 5.0) == pytest.approx(-0.2)
    assert math.isnan(relative_change(0.1, 0.0))
    assert math.isnan(relative_change(0.1, -0.1))


def test_equal_models_differ_in_one_of_twenty():
    # 4 tasks with 250 examples, answered independently. Of 150 such pairs 23
    # seem to differ where the baseline's score is taken as exact.
    tasks = ('a', 'b', 'c', 'd')
    benchmarks = tuple(Benchmark(task, 0, 0.25) for task in tasks)
    gauntlet = Gauntlet('', {'all': benchmarks}, {'core': ('all', )})
    rng = np.random.default_rng(1)

    def answers() -> ModelResults:
        rights = {f'{task}/0-shot': rng.random(250) < 0.33 for task in tasks}
        parts = {
            label: Part('', float(right.mean()), 250, right)
            for label, right in rights.items()
        }
        return ModelResults('', '', {of: {of: parts[of]} for of in parts})

    n_differ = 0
    for _ in range(150):
        found = compare(answers(), answers(), gauntlet, 1000)
        ends = found.averages['core'].relative_interval
        assert ends is not None
        n_differ += not ends[0] <= 0 <= ends[1]
    assert 2 <= n_differ <= 14
