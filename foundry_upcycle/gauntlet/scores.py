"""Scores of a gauntlet with intervals of 95 %, and what differs between models.

Scores are Foundry's, with one deviation: Foundry drops a category that lacks
one task, and counts an average of nothing as 0; here both are over the tasks
that were measured, and those that were not are named. All are weighted sums
of the accuracies of parts (a task, or its categories where it has several).

Shapes: T tasks, P parts.
"""

import math
from dataclasses import dataclass
from typing import Any, Callable, Iterable, Mapping, Optional, Sequence

import numpy as np

from foundry_upcycle.errors import ConfigError
from foundry_upcycle.gauntlet.gauntlets import Gauntlet
from foundry_upcycle.gauntlet.intervals import (
    N_REPLICATES,
    ROUNDING,
    Draws,
    Ends,
    Estimate,
    draw,
    draw_difference,
    generator,
    interval,
    relative_interval,
)
from foundry_upcycle.gauntlet.results import ModelResults, Part

__all__ = [
    'Change',
    'Comparison',
    'Estimate',
    'Scores',
    'compare',
    'relative_change',
    'score',
]

_SEED = 17


@dataclass(frozen=True)
class Scores:
    """One model's scores.

    Args:
        label: The model.
        n_examples: Task -> its examples, None where not known.
        n_parts: Task -> its categories, 1 where it has none.
        accuracies: Task -> share of right answers, the mean over its parts.
        tasks: Task -> score: accuracy above chance, 1 at the most.
        categories: Category -> mean of its tasks' scores. One without any
            measured task is left out.
        averages: Average -> mean of its categories' scores.
        missing: Tasks of the gauntlet that were not measured.
    """

    label: str
    n_examples: Mapping[str, Optional[int]]
    n_parts: Mapping[str, int]
    accuracies: Mapping[str, Estimate]
    tasks: Mapping[str, Estimate]
    categories: Mapping[str, Estimate]
    averages: Mapping[str, Estimate]
    missing: tuple[str, ...]


@dataclass(frozen=True)
class Change:
    """A figure of one model against the baseline's.

    Args:
        value: The model's.
        baseline: The baseline's.
        interval: Of the difference; None where a number of examples is not
            known.
        paired: Whether all examples were resampled in pairs.
        relative_interval: Of the relative change. None where the difference has
            none, or the baseline may be 0.
    """

    value: float
    baseline: float
    interval: Optional[Ends]
    paired: bool
    relative_interval: Optional[Ends] = None

    @property
    def difference(self) -> float:
        return self.value - self.baseline

    @property
    def relative(self) -> float:
        return relative_change(self.value, self.baseline)

    @property
    def verdict(self) -> str:
        """What can be told at 95 %."""
        if self.interval is None:
            return 'not known'
        low, high = self.interval
        if low > ROUNDING:
            return 'higher'
        return 'lower' if high < -ROUNDING else 'not told apart'


@dataclass(frozen=True)
class Comparison:
    """One model against the baseline, on the tasks that both were measured on.

    Args:
        label: The model.
        baseline: The model that it is compared with.
        accuracies: Task -> change of the accuracy.
        tasks: Task -> change of the score.
        categories: Category -> change of the score.
        averages: Average -> change of the score.
        left_out: Tasks of the gauntlet that one of them lacks, or has in other
            parts.
    """

    label: str
    baseline: str
    accuracies: Mapping[str, Change]
    tasks: Mapping[str, Change]
    categories: Mapping[str, Change]
    averages: Mapping[str, Change]
    left_out: tuple[str, ...]


def relative_change(value: float, start: float) -> float:
    """Change relative to the dense start, as the paper reports it.

    NaN where the start is not positive: nothing can be relative to it, as with
    a gauntlet score below chance.
    """
    return (value - start) / start if start > 0 else math.nan


def score(
    results: ModelResults,
    gauntlet: Gauntlet,
    n_replicates: int = N_REPLICATES,
    seed: int = _SEED,
) -> Scores:
    """Scores a model by the tasks of a gauntlet that it was measured on.

    Args:
        results: What was measured.
        gauntlet: The tasks and how to average them.
        n_replicates: Of the bootstrap.
        seed: Of the bootstrap.

    Raises:
        ConfigError: None of the tasks was measured, or the gauntlet scores
            otherwise than by equal weights above chance.
    """
    measured = gauntlet.restricted(results.tasks)
    if not measured.benchmarks:
        raise ConfigError(
            'results',
            results.source,
            f'{results.label} was measured on no task of {gauntlet.name}, but '
            f"on {', '.join(results.tasks)}.",
            f'evaluate it on tasks such as {measured.left_out[0]}.',
        )
    tasks = {b.label: results.tasks[b.label] for b in measured.benchmarks}
    parts = {
        label: part
        for task in tasks.values()
        for label, part in task.items()
    }
    draws = _draw_all(parts, n_replicates, seed)

    def estimate(row: _Row) -> Estimate:
        return row.estimate(parts.values(), draws)

    return Scores(
        label=results.label,
        n_examples={
            label: _n_examples(task.values())
            for label, task in tasks.items()
        },
        n_parts={
            label: len(task)
            for label, task in tasks.items()
        },
        missing=measured.left_out,
        **_each(estimate, _rows(measured, tasks)),
    )


def compare(
    results: ModelResults,
    baseline: ModelResults,
    gauntlet: Gauntlet,
    n_replicates: int = N_REPLICATES,
    seed: int = _SEED,
) -> Comparison:
    """Compares a model with another, by the tasks that both were measured on.

    Examples are resampled in pairs where both models have per-example results
    of one length; that these stand in the order of one data file is not
    checked. Elsewhere the models are taken as independent.

    Args:
        results: What the model measured.
        baseline: What the model measured that it is compared with.
        gauntlet: The tasks and how to average them.
        n_replicates: Of the bootstrap.
        seed: Of the bootstrap.

    Raises:
        ConfigError: They have no task of the gauntlet in common, or it scores
            otherwise than by equal weights above chance.
    """
    shared = gauntlet.restricted([
        task for task, parts in results.tasks.items()
        if parts.keys() == baseline.tasks.get(task, {}).keys()
    ])
    if not shared.benchmarks:
        raise ConfigError(
            'baseline',
            baseline.label,
            f'it has no task of {gauntlet.name} in common with '
            f'{results.label}.',
            'evaluate both on the same tasks.',
        )
    tasks = {b.label: results.tasks[b.label] for b in shared.benchmarks}
    pairs = {
        label: (part, baseline.tasks[task][label])
        for task, parts in tasks.items()
        for label, part in parts.items()
    }
    parts, bases = zip(*pairs.values(), strict=True)
    draws = _draw_all(dict(zip(pairs, parts)), n_replicates, seed)
    base_draws = _draw_all(dict(zip(pairs, bases)), n_replicates, seed)
    differences = [
        draw_difference(*pair, n_replicates, generator(seed, label))
        for label, pair in pairs.items()
    ]

    def change(row: _Row) -> Change:
        own = row.estimate(parts, draws)
        base = row.estimate(bases, base_draws)
        ends = interval(own.value - base.value, row.weights_P, differences)
        return Change(
            own.value,
            base.value,
            ends,
            all(
                part is not None and part.paired
                for part, weight in zip(differences, row.weights_P)
                if weight
            ),
            relative_interval(own, base, ends),
        )

    return Comparison(
        label=results.label,
        baseline=baseline.label,
        left_out=shared.left_out,
        **_each(change, _rows(shared, tasks)),
    )


def _draw_all(
    parts: Mapping[str, Part],
    n_replicates: int,
    seed: int,
) -> list[Optional[Draws]]:
    return [
        draw(part, n_replicates, generator(seed, label))
        for label, part in parts.items()
    ]


def _n_examples(parts: Iterable[Part]) -> Optional[int]:
    counts = [part.n for part in parts]
    return None if None in counts else sum(n for n in counts if n)


@dataclass(frozen=True)
class _Row:
    """A figure: a weighted sum of accuracies, and a constant.

    Args:
        weights_P: Weight of each part.
        of_none_right: The figure where all accuracies are 0.
    """

    weights_P: np.ndarray
    of_none_right: float = 0.0

    def estimate(
        self,
        parts: Iterable[Part],
        draws: Sequence[Optional[Draws]],
    ) -> Estimate:
        accuracies_P = np.array([part.accuracy for part in parts])
        value = float(self.weights_P @ accuracies_P) + self.of_none_right
        return Estimate(value, interval(value, self.weights_P, draws))


def _rows(
    gauntlet: Gauntlet,
    tasks: Mapping[str, Mapping[str, Part]],
) -> dict[str, dict[str, _Row]]:
    """All figures, by kind and name, as sums over the parts of all tasks.

    Args:
        gauntlet: What to average.
        tasks: Each of its tasks, in its order -> the parts.
    """
    gauntlet.require_scoring()
    eye_TT = np.eye(len(tasks))
    tasks_T = dict(zip(tasks, eye_TT, strict=True))
    categories_T = {
        name: _mean(tasks_T[b.label]
                    for b in benchmarks)
        for name, benchmarks in gauntlet.categories.items()
    }
    averages_T = {
        name:
        _mean(
            categories_T[category]
            # Foundry counts one that is named twice once.
            for category in dict.fromkeys(names)
        )
        for name, names in gauntlet.averages.items()
        if names
    }
    # A task's accuracy is the mean over its parts, as Foundry computes it.
    n_parts_T = [len(parts) for parts in tasks.values()]
    means_TP = np.repeat(eye_TT / n_parts_T, n_parts_T, axis=1)
    # Scores are linear in the accuracy.
    of_none_T = np.array([b.score(0.0) for b in gauntlet.benchmarks])
    of_all_T = np.array([b.score(1.0) for b in gauntlet.benchmarks])

    def above_chance(weights_T: np.ndarray) -> _Row:
        scaled_T = weights_T * (of_all_T - of_none_T)
        return _Row(scaled_T @ means_TP, float(weights_T @ of_none_T))

    return {
        'accuracies': {
            name: _Row(row @ means_TP)
            for name, row in tasks_T.items()
        },
        'tasks': {
            name: above_chance(row)
            for name, row in tasks_T.items()
        },
        'categories': {
            name: above_chance(row)
            for name, row in categories_T.items()
        },
        'averages': {
            name: above_chance(row)
            for name, row in averages_T.items()
        },
    }


def _mean(weights: Iterable[np.ndarray]) -> np.ndarray:
    return np.mean(list(weights), axis=0)


def _each(
    function: Callable[[_Row], Any],
    rows: Mapping[str, Mapping[str, _Row]],
) -> dict[str, Any]:
    return {
        kind: {
            name: function(row)
            for name, row in named.items()
        }
        for kind, named in rows.items()
    }
