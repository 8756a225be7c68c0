"""Means, intervals and differences of a study's finished runs.

A point is a ``Place`` without a seed: all seeds of an arm at one budget, or a
dense start.
"""

import math
from dataclasses import replace
from functools import cached_property
from typing import Callable, Mapping, Optional

from foundry_upcycle.gauntlet.intervals import Ends
from foundry_upcycle.study.config import ModelGrid
from foundry_upcycle.study.grid import Place, Run
from foundry_upcycle.study.report.metrics import (
    Mean,
    Metric,
    Quality,
    loss_metrics,
    pool_answers,
    read_loss,
)
from foundry_upcycle.study.report.statistics import Spread, pool_spread
from foundry_upcycle.study.results import RunResult, StudyResults

__all__ = ['Summary']

# Seed (None of a dense start) -> value.
_BySeed = Mapping[Optional[int], float]
_Values = Callable[[Metric, Place], _BySeed]


class Summary:
    """What a study measured, as figures to compare.

    Args:
        study: What was measured.
    """

    def __init__(self, study: StudyResults):
        self.study = study
        self.grid = study.grid
        self.models: tuple[ModelGrid, ...] = study.grid.study.models
        self.quality = Quality.of(study)
        self._by_name = {model.name: model for model in self.models}
        # Keys begin with whether it is of differences.
        self._means: dict[tuple[bool, Metric, Place], Optional[Mean]] = {}
        self._spreads: dict[tuple[bool, Metric, str, str],
                            Optional[Spread]] = {}

    @cached_property
    def metrics(self) -> tuple[Metric, ...]:
        """All that was measured of any run."""
        losses = loss_metrics(self.study)
        return (*losses, self.quality.metric) if self.quality else losses

    @property
    def best_measure(self) -> Metric:
        """Quality, or what stands for it: a held-out or the training loss."""
        if self.quality:
            return self.quality.metric
        return self.metrics[min(1, len(self.metrics) - 1)]

    @cached_property
    def dense_arms(self) -> Mapping[str, tuple[str, ...]]:
        """Model -> its arms that are continued pretraining."""
        return {
            model.name:
            tuple(
                arm
                for arm in model.arms
                if self.any_run(model, arm).base.is_continued
            )
            for model in self.models
        }

    def reference(self, model: ModelGrid) -> Optional[str]:
        """The arm that others are compared with: the first that is dense."""
        return next(iter(self.dense_arms[model.name]), None)

    def compared(self, model: ModelGrid) -> tuple[str, ...]:
        """The arms that are compared with the reference, if there is one."""
        reference = self.reference(model)
        if reference is None:
            return ()
        return tuple(arm for arm in model.arms if arm != reference)

    def any_run(self, model: ModelGrid, arm: str) -> Run:
        """One of an arm's runs: all have the same model."""
        duration = next(iter(model.durations))
        return self.run(Place(model.name, duration, arm, model.budgets[0]))

    def run(self, point: Place) -> Run:
        """One of a point's runs, finished or not; all have the same steps."""
        seed = None if point.arm is None else self.grid.study.seeds[0]
        return self.grid.candidates(replace(point, seed=seed))[0]

    def results(self, point: Place) -> Mapping[Optional[int], RunResult]:
        """Seed -> what its run at a point measured, of those finished."""
        seeds = (None, ) if point.arm is None else self.grid.study.seeds
        places = {seed: replace(point, seed=seed) for seed in seeds}
        return {
            seed: self.study.by_place[place]
            for seed, place in places.items()
            if place in self.study.by_place
        }

    @cached_property
    def diverged(self) -> tuple[str, ...]:
        """Names of runs of which a loss is no number; means are without it."""
        metrics = loss_metrics(self.study)
        return tuple(
            result.run.name for result in self.study.by_place.values() if any(
                not math.isfinite(loss) for metric in metrics
                if (loss := read_loss(metric, result)) is not None
            )
        )

    def points(
        self,
        model: ModelGrid,
        duration: str,
        arm: str,
    ) -> tuple[Place, ...]:
        """The points of an arm that have a result, by ascending budget."""
        points = (
            Place(model.name, duration, arm, budget) for budget in model.budgets
        )
        return tuple(point for point in points if self.results(point))

    def shared(
        self,
        model: ModelGrid,
        duration: str,
        *arms: str,
    ) -> list[float]:
        """The budgets at which all these arms have a result, descending."""
        budgets = [{
            point.budget
            for point in self.points(model, duration, arm)
        }
                   for arm in arms]
        return sorted(set.intersection(*budgets), reverse=True)

    def largest_begun(
        self,
        model: ModelGrid,
        duration: str,
    ) -> Optional[float]:
        """The largest at which every arm has a result that has any.

        The largest at which any has, where there is no such.
        """
        of_arms = [self.points(model, duration, arm) for arm in model.arms]
        begun = [points[0].arm for points in of_arms if points]
        if not begun:
            return None
        shared = self.shared(model, duration, *filter(None, begun))
        if shared:
            return shared[0]
        return max(point.budget for points in of_arms for point in points)

    def mean(self, metric: Metric, point: Place) -> Optional[Mean]:
        """The mean of a point; None where nothing was measured.

        Its interval is over seeds if any point of the arm has several; else,
        of quality, over examples.
        """
        key = False, metric, point
        if key not in self._means:
            self._means[key] = self._mean(metric, point)
        return self._means[key]

    def difference(self, metric: Metric, point: Place) -> Optional[Mean]:
        """By how much a point exceeds the reference's at the same FLOPs.

        Over the seeds that both have; None where there is none, or no
        reference. Intervals are as those of means.
        """
        key = True, metric, point
        if key not in self._means:
            self._means[key] = self._difference(metric, point)
        return self._means[key]

    def over_examples(
        self,
        point: Place,
        base: Optional[Place] = None,
    ) -> Optional[Ends]:
        """Of a difference of quality, what other examples would change.

        Args:
            point: What is compared.
            base: A dense start, or the other arm's point; by default the
                reference's at the same FLOPs.
        """
        base = base or self._base(point)
        if base is None or self.quality is None:
            return None
        bases = self.results(base)
        return self.quality.interval_of_difference([
            (result, bases[key])
            for seed, result in self.results(point).items()
            if (key := seed if base.arm else None) in bases
        ])

    def _mean(self, metric: Metric, point: Place) -> Optional[Mean]:
        values = self._values(metric, point)
        if not values:
            return None
        spread = self._spread(metric, point, self._values)
        if spread is not None:
            return _over_seeds(values, spread)
        tasks = pool_answers(list(self.results(point).values()))
        interval = None
        if tasks and self.quality and metric == self.quality.metric:
            interval = self.quality.interval(tasks)
        return _over_examples(values, interval)

    def _difference(self, metric: Metric, point: Place) -> Optional[Mean]:
        values = self._differences(metric, point)
        if not values:
            return None
        spread = self._spread(metric, point, self._differences)
        if spread is not None:
            return _over_seeds(values, spread)
        is_quality = self.quality and metric == self.quality.metric
        interval = self.over_examples(point) if is_quality else None
        return _over_examples(values, interval)

    def _values(self, metric: Metric, point: Place) -> _BySeed:
        quality = self.quality
        values = {
            seed:
            quality.value(result) if quality and metric == quality.metric else
            read_loss(metric, result)
            for seed, result in self.results(point).items()
        }
        return {
            seed: value
            for seed, value in values.items()
            # Of a run that diverged there is no mean, and no other.
            if value is not None and math.isfinite(value)
        }

    def _differences(self, metric: Metric, point: Place) -> _BySeed:
        base = self._base(point)
        others = self._values(metric, base) if base else {}
        values = self._values(metric, point)
        return {s: values[s] - others[s] for s in values if s in others}

    def _base(self, point: Place) -> Optional[Place]:
        """The reference's point at the same FLOPs."""
        arm = self.reference(self._by_name[point.model])
        return None if arm is None else replace(point, arm=arm)

    def _spread(
        self,
        metric: Metric,
        point: Place,
        values: _Values,
    ) -> Optional[Spread]:
        """Of the values or differences at all points of the arm."""
        if point.arm is None:
            return None
        is_difference = values == self._differences
        key = is_difference, metric, point.model, point.arm
        if key not in self._spreads:
            model = self._by_name[point.model]
            self._spreads[key] = pool_spread(
                list(values(metric, other).values())
                for duration in model.durations
                for other in self.points(model, duration, point.arm)
            )
        return self._spreads[key]


def _over_seeds(values: _BySeed, spread: Spread) -> Mean:
    seeds = list(values.values())
    mean = sum(seeds) / len(seeds)
    return Mean(mean, spread.interval(seeds), 'seeds', len(seeds))


def _over_examples(
    values: _BySeed,
    interval: Optional[Ends],
) -> Mean:
    (value, ) = values.values()
    return Mean(value, interval, 'examples' if interval else '', 1)
