"""Training loss against FLOPs."""

import math
from typing import Optional

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from foundry_upcycle.figures import legend_above
from foundry_upcycle.study.grid import Place
from foundry_upcycle.study.report.figures.look import Drawing, Scene, tidy
from foundry_upcycle.study.results import RunResult

__all__ = ['draw_curves']

_SMOOTHING_STEPS = 20
# Of each run, this share may lie above the panel: what upcycling disturbs at
# first would else flatten all that follows.
_START = 0.1
_PREFIXES = ('', 'k', 'M', 'G', 'T', 'P', 'E', 'Z', 'Y')


def draw_curves(scene: Scene) -> Optional[Drawing]:
    """Training loss of the arms, a panel for each duration.

    Of each duration the largest budget, and the first seed that is there.

    Returns:
        None where no arm has a result.
    """
    durations = scene.durations()
    if not durations:
        return None
    n_columns = min(2, len(durations))
    n_rows = math.ceil(len(durations) / n_columns)
    figure = Figure(
        figsize=(max(5.5, 4.6 * n_columns), 0.6 + 3.6 * n_rows),
        layout='constrained',
    )
    grid = figure.subplots(n_rows, n_columns, squeeze=False)
    for axes in grid.flat[len(durations):]:
        axes.remove()
    for axes, duration in zip(grid.flat, durations):
        _plot(axes, scene, duration)
    trained = [
        arm for arm in scene.model.arms
        if scene.summary.any_run(scene.model, arm).is_training
    ]
    legend_above(figure, scene.look.arm_handles(trained))
    return Drawing(
        f'curves_{scene.model.name}',
        f'{scene.model.name}: training loss against FLOPs',
        'Training loss of the first seed at the largest budget; faint: each '
        f'step, strong: mean of the last {_SMOOTHING_STEPS} (of fewer in '
        'shorter runs). All arms start from the same dense model, with a '
        'learning rate that warms up again; the first tenth may lie above the '
        'panel.',
        figure,
    )


def _plot(axes: Axes, scene: Scene, duration: str) -> None:
    budget = scene.summary.largest_begun(scene.model, duration)
    assert budget is not None  # An arm has begun.
    curves = {}
    for arm in scene.begun(duration):
        point = Place(scene.model.name, duration, arm, budget)
        results = scene.summary.results(point)
        # What is only evaluated has no curve of its own.
        if results and scene.summary.run(point).is_training:
            curves[arm] = next(iter(results.values()))
    if not curves:
        return
    unit, prefix = _scale(max(r.run.flops for r in curves.values()))
    shown = np.concatenate([
        _plot_run(axes, result, unit, scene.look.colors[arm])
        for arm, result in curves.items()
    ])
    shown = shown[np.isfinite(shown)]
    if shown.size:
        room = max(0.3 * (shown.max() - shown.min()), 1e-3)
        axes.set_ylim(shown.min() - room, shown.max() + room)
    tidy(axes)
    axes.set_title(
        f'pretraining: {duration}, {scene.model.budget_text(budget)}'
    )
    axes.set_xlabel(f'FLOPs after the dense start ({prefix}FLOP)')
    axes.set_ylabel('training loss (nats per token)')


def _plot_run(
    axes: Axes,
    result: RunResult,
    unit: float,
    color: str,
) -> np.ndarray:
    """Draws a run; returns its mean losses after the beginning."""
    loss = result.train_loss
    # As floats: a run of the paper's sizes takes more FLOPs than an int64 holds.
    flops = result.run.source_flops / unit
    flops += np.arange(1, len(loss) + 1) * (result.run.flops_per_step / unit)
    # As pixels: a path of all steps would make the SVG large.
    axes.plot(
        flops,
        loss,
        color=color,
        alpha=0.2,
        linewidth=0.7,
        rasterized=True,
        zorder=1,
    )
    window = min(_SMOOTHING_STEPS, len(loss))
    smooth = np.convolve(loss, np.ones(window) / window, mode='valid')
    axes.plot(flops[window - 1:], smooth, color=color, linewidth=1.8, zorder=3)
    return smooth[int(_START * len(smooth)):]


def _scale(flops: float) -> tuple[float, str]:
    """Unit and prefix in which FLOPs are a number from 1 to 1000."""
    power = min(int(math.log10(flops) // 3), len(_PREFIXES) - 1)
    return 1000.0**power, _PREFIXES[power]
