"""What a second phase changes of its dense start."""

from dataclasses import replace
from typing import Optional

from foundry_upcycle.gauntlet.intervals import Estimate, relative_interval
from foundry_upcycle.gauntlet.scores import relative_change
from foundry_upcycle.study.grid import Place
from foundry_upcycle.study.report.metrics import Mean, Metric, pool_answers
from foundry_upcycle.study.report.summary import Summary

__all__ = ['change_of_loss', 'quality_of_start', 'relative_to_start']


def change_of_loss(
    summary: Summary,
    metric: Metric,
    point: Place,
) -> Optional[Mean]:
    """By how much a loss on held-out text differs from the dense start's.

    Above 0 on text like that of pretraining, it is what was forgotten. Its
    interval is that of the point: the start is one model.
    """
    mean = summary.mean(metric, point)
    start = summary.mean(metric, _start(point))
    if mean is None or start is None:
        return None
    interval = mean.interval
    if interval is not None:
        interval = interval[0] - start.value, interval[1] - start.value
    return replace(mean, value=mean.value - start.value, interval=interval)


def quality_of_start(summary: Summary, point: Place) -> Optional[Mean]:
    """Of the dense model that a point goes on from; None: not measured."""
    if summary.quality is None:
        return None
    return summary.mean(summary.quality.metric, _start(point))


def relative_to_start(summary: Summary, point: Place) -> Optional[Mean]:
    """By how much quality changes, as the paper's Figure 1 has it.

    Its interval is over the examples of both models, and over seeds where there
    are several: the start was measured on no other examples, and errs as much.

    Returns:
        None where one of them was not measured, or the start is no better than
        guessing: nothing is relative to that.
    """
    start = quality_of_start(summary, point)
    if summary.quality is None or start is None or start.value <= 0:
        return None
    mean = summary.mean(summary.quality.metric, point)
    if mean is None:
        return None
    over, spread = 'examples', 0.0
    if mean.over == 'seeds' and mean.interval:
        over = 'seeds and examples'
        spread = (mean.interval[1] - mean.interval[0]) / 2
    tasks = pool_answers(list(summary.results(point).values()))
    interval = relative_interval(
        Estimate(mean.value, tasks and summary.quality.interval(tasks)),
        Estimate(start.value, start.interval),
        summary.over_examples(point, _start(point)),
        spread,
    )
    change = relative_change(mean.value, start.value)
    return Mean(change, interval, over if interval else '', mean.n_seeds)


def _start(point: Place) -> Place:
    return replace(point, arm=None, budget=0.0)
