"""Quality against the cost of serving."""

import math
from typing import Optional, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from foundry_upcycle.figures import legend_above, literal
from foundry_upcycle.study.grid import Place
from foundry_upcycle.study.report.figures.look import (
    DENSE,
    Drawing,
    Scene,
    tidy,
)
from foundry_upcycle.study.report.serving import Cost, Serving, arm_costs

__all__ = ['draw_cost']

# Lines of one cost are set apart, in units of the dense model's.
_APART = 0.03
# Markers in points, of a budget of 0 and of the largest one.
_SMALLEST, _LARGEST = 3.0, 8.0

# An arm, the duration of its dense start, what it costs, and where that is
# drawn.
_Line = tuple[str, str, Cost, float]


def draw_cost(scene: Scene, serving: Serving) -> Optional[Drawing]:
    """What each arm reaches, and what a token of it costs to serve.

    Returns:
        None where no arm that has a result has a known cost.
    """
    lines = _lines(scene, serving)
    if not lines:
        return None
    metric = scene.summary.best_measure
    figure = Figure(figsize=(7.2, 4.8), layout='constrained')
    axes = figure.subplots()
    for line in lines:
        _plot(axes, scene, *line)
    # Of training, it is on other text.
    has_starts = metric.is_held_out or metric.higher_is_better
    if has_starts:
        _plot_starts(axes, scene, lines)
    tidy(axes)
    axes.margins(0.08)
    labels = f" ({', '.join(serving.labels)})" if serving.labels else ''
    axes.set_title(literal(f'{scene.model.name}{labels}'))
    axes.set_xlabel('cost of serving a token (dense model = 1)')
    axes.set_ylabel(literal(metric.label))
    _legend(figure, scene, has_starts)
    return Drawing(
        f'serving_{scene.model.name}',
        f'{scene.model.name}: {metric.title} against serving cost',
        'Cost of serving: maximum throughput of the dense model, divided by '
        f"the model's{labels}. A point is a budget of FLOPs, the "
        'larger the more. Lines of one cost are set apart a little; bars: '
        '95 %.',
        figure,
    )


def _lines(scene: Scene, serving: Serving) -> list[_Line]:
    found = [
        (arm, duration, cost)
        for arm, cost in arm_costs(scene.summary, scene.model, serving).items()
        for duration in scene.durations()
        if cost is not None and arm in scene.begun(duration)
    ]
    lines = []
    for arm, duration, cost in found:
        alike = [line for line in found if line[2].value == cost.value]
        index = alike.index((arm, duration, cost))
        apart = (index - (len(alike) - 1) / 2) * _APART
        lines.append((arm, duration, cost, cost.value + apart))
    return lines


def _plot(
    axes: Axes,
    scene: Scene,
    arm: str,
    duration: str,
    cost: Cost,
    place: float,
) -> None:
    summary, metric = scene.summary, scene.summary.best_measure
    found = [(point.budget, mean)
             for point in summary.points(scene.model, duration, arm)
             if (mean := summary.mean(metric, point)) is not None]
    if not found:
        return
    x = np.full(len(found), place)
    y = np.array([mean.value for _, mean in found])
    nothing = (math.nan, math.nan)
    ends = np.array([mean.interval or nothing for _, mean in found])
    style = scene.look.style(arm, duration)
    axes.plot(x, y, color=style['color'], linestyle=style['linestyle'])
    axes.errorbar(
        x,
        y,
        xerr=np.outer([cost.value - cost.low, cost.high - cost.value], x > 0),
        yerr=np.maximum((y - ends[:, 0], ends[:, 1] - y), 0),  # Rounding.
        color=style['color'],
        linestyle='none',
        linewidth=0.8,
        alpha=0.5,
    )
    axes.scatter(
        x,
        y,
        s=[_size(scene, budget)**2 for budget, _ in found],
        color=style['color'],
        marker=style['marker'],
        zorder=3,
    )


def _size(scene: Scene, budget: float) -> float:
    share = budget / max(scene.model.budgets)
    return _SMALLEST + share * (_LARGEST - _SMALLEST)


def _plot_starts(axes: Axes, scene: Scene, lines: Sequence[_Line]) -> None:
    """The dense starts: what continued pretraining begins with."""
    metric = scene.summary.best_measure
    reference = scene.summary.reference(scene.model)
    for duration in scene.durations():
        start = scene.summary.mean(metric, Place(scene.model.name, duration))
        if start:
            places = [
                place for arm, of, _, place in lines
                if (arm, of) == (reference, duration)
            ]
            axes.plot(
                places[0] if places else 1.0,
                start.value,
                color=DENSE,
                marker=scene.look.markers[duration],
                markerfacecolor='white',
                linestyle='none',
                zorder=4,
            )


def _legend(figure: Figure, scene: Scene, has_starts: bool) -> None:
    handles = scene.look.arm_handles(scene.model.arms)
    if len(scene.durations()) > 1:
        handles += scene.look.duration_handles(scene.durations())
    budgets = scene.model.budgets
    for budget in dict.fromkeys((budgets[0], budgets[-1])):
        handles.append(
            Line2D(
                [],
                [],
                color='black',
                marker='o',
                markersize=_size(scene, budget),
                linestyle='none',
                label=scene.model.budget_text(budget),
            ),
        )
    if has_starts:
        handles.append(
            Line2D(
                [],
                [],
                color=DENSE,
                marker='o',
                markerfacecolor='white',
                linestyle='none',
                label='dense start',
            ),
        )
    legend_above(figure, handles, most_columns=3)
