"""Points of scaling laws: the paper's, and what the runs of studies measured."""

import math
from typing import Iterator, Mapping, Optional

from foundry_upcycle.errors import ConfigError
from foundry_upcycle.planning.advice.arms import ARMS
from foundry_upcycle.planning.advice.laws import Point
from foundry_upcycle.planning.advice.model import Mixture
from foundry_upcycle.study.config import ModelGrid
from foundry_upcycle.study.grid import Place, Run
from foundry_upcycle.study.paper import load_paper
from foundry_upcycle.study.results import RunResult, StudyResults

__all__ = [
    'PAPER',
    'PAPER_MIXTURE',
    'Points',
    'paper_points',
    'study_points',
]

# The name of the paper's study.
PAPER = 'the paper'
PAPER_MIXTURE = Mixture(n_experts=8, top_k=2)
# Parameters of its models (Table 3).
_PARAMS = {'436M': 436e6, '1.4B': 1.42e9}

# Arm -> its points.
Points = Mapping[str, tuple[Point, ...]]


def paper_points() -> Points:
    """What the paper printed."""
    return {
        arm:
        tuple(
            Point(
                PAPER,
                f'{model} {name}',
                fraction,
                _PARAMS[model],
                duration.pretraining_tokens,
                point.tokens,
                point.final_loss,
            )
            for model, durations in load_paper().items()
            for name, duration in durations.items()
            for fraction, point in duration.arms[arm].items()
        )
        for arm in ARMS
    }


def study_points(
    results: StudyResults,
    mixture: Mixture,
) -> Points:
    """What a study's finished runs ended with, seeds averaged.

    Of continued pretraining it is the first dense arm of each model; of
    upcycling the first that makes this mixture.

    Raises:
        ConfigError: No model of the study has such an arm, or no run of one is
            finished.
    """
    found: dict[str, list[Point]] = {arm: [] for arm in ARMS}
    for model in results.grid.study.models:
        arms = _arms(results, model, mixture)
        for arm in ARMS:
            if arms[arm] is not None:
                found[arm] += _of_arm(results, model, str(arms[arm]))
    for arm, points in found.items():
        if not points:
            _refuse(results, arm, mixture)
    return {arm: tuple(points) for arm, points in found.items()}


def _arms(
    results: StudyResults,
    model: ModelGrid,
    mixture: Mixture,
) -> dict[str, Optional[str]]:
    """Continued pretraining and upcycling, by the names of the study's arms."""
    runs = {name: _any_run(results, model, name) for name in model.arms}
    cpt = [name for name, run in runs.items() if run.base.is_continued]
    moe = [
        name for name, run in runs.items() if run.base.is_upcycling
        # One whose K varied is another.
        and run.shape.mean_top_k == run.shape.top_k and
        Mixture(run.shape.n_experts, run.shape.top_k) == mixture
    ]
    return {
        'cpt': next(iter(cpt), None),
        'upcycled': next(iter(moe), None),
    }


def _any_run(results: StudyResults, model: ModelGrid, arm: str) -> Run:
    """One of an arm's runs: all have the same model."""
    return next(
        run for run in results.grid.runs
        if (run.place.model, run.place.arm) == (model.name, arm)
    )


def _of_arm(
    results: StudyResults,
    model: ModelGrid,
    arm: str,
) -> Iterator[Point]:
    study = results.grid.study
    for duration in model.durations:
        for budget in model.budgets:
            found = [
                result for seed in study.seeds if (
                    result := _finished(
                        results,
                        Place(model.name, duration, arm, budget, seed),
                    )
                )
            ]
            if found:
                start = results.grid.dense_start(found[0].run)
                yield Point(
                    study.name,
                    f'{model.name} {duration}',
                    model.budget_flops(budget, start.flops) / start.flops,
                    start.shape.n_total_params,
                    start.tokens,
                    found[0].run.tokens,
                    sum(each.final_loss for each in found) / len(found),
                )


def _finished(results: StudyResults, place: Place) -> Optional[RunResult]:
    """What a place's best run measured; None where it has not, or diverged."""
    found = results.best(results.grid.candidates(place))
    # A loss of 0 is of a text that was learnt by heart, and has no logarithm.
    is_usable = found is not None and 0 < found.final_loss < math.inf
    return found if is_usable else None


def _refuse(
    results: StudyResults,
    arm: str,
    mixture: Mixture,
) -> None:
    what = 'continued pretraining' if arm == 'cpt' else (
        f'upcycling to {mixture}'
    )
    study = results.grid.study
    arms = ', '.join(dict.fromkeys(a for m in study.models for a in m.arms))
    raise ConfigError(
        '--runs',
        study.name,
        f'no run of {what} is finished (arms: {arms}).',
        'finish some with `foundry-upcycle study run`, or give --experts and '
        '--top-k of the arm that is there.',
    )
