"""What arms gain, against FLOPs: Figures 1 and 4 of the paper."""

import math
from typing import Iterator, Optional, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from foundry_upcycle.figures import legend_above, literal
from foundry_upcycle.gauntlet.scores import relative_change
from foundry_upcycle.study.grid import Place
from foundry_upcycle.study.paper import PaperDuration, paper_durations
from foundry_upcycle.study.report.figures.look import (
    BEHIND,
    DENSE,
    Drawing,
    Scene,
    tidy,
)
from foundry_upcycle.study.report.metrics import Mean, Metric
from foundry_upcycle.study.report.relative import (
    quality_of_start,
    relative_to_start,
)

__all__ = ['draw_gains', 'draw_quality']

_X_LABELS = {
    'fraction': "FLOPs of the second phase (fraction of pretraining's)",
    'FLOPs': 'FLOPs of the second phase',
}
# Lines are set apart by this share of the largest budget, so that bars don't
# hide each other, and all of them together by no more than that one.
_APART = 0.012
_MOST_APART = 0.06
_MARGIN = 1.06
_LINE_BEHIND = {key: BEHIND[key] for key in ('alpha', 'zorder', 'linewidth')}


def draw_gains(scene: Scene) -> Optional[Drawing]:
    """The paper's Figure 1, with a panel more for each held-out text.

    Returns:
        None where no arm has a result.

    Raises:
        ConfigError: The paper has no such model as the study says.
    """
    durations = scene.durations()
    if not durations:
        return None
    metrics = scene.summary.metrics
    of_durations = dict.fromkeys(metrics[::-1], durations)
    quality = scene.summary.quality
    if quality:
        of_durations[quality.metric] = _with_start(scene, durations)
    shown = [
        metric for metric, of in of_durations.items()
        if of and not metric.is_held_out
    ]
    shown += [metric for metric in metrics if metric.is_held_out]
    figure, panels = _grid(scene, len(shown), min(2, len(shown)))
    for axes, metric in zip(panels, shown, strict=True):
        _plot_gain(axes, scene, metric, of_durations[metric])
    _legend(figure, scene, durations)
    caption = [
        _caption(scene, durations),
        'The training loss of the dense start is on other text, and not shown.',
    ]
    if quality:
        caption += _relative_caption(scene, durations)
    return Drawing(
        f'gains_{scene.model.name}',
        f'{scene.model.name}: gains against FLOPs',
        ' '.join(caption),
        figure,
    )


def _plot_gain(
    axes: Axes,
    scene: Scene,
    metric: Metric,
    durations: Sequence[str],
) -> None:
    is_quality = metric.higher_is_better
    _Panel(axes, scene, metric, durations, is_quality).plot()
    if is_quality:
        axes.axhline(0, color=DENSE, linewidth=1.2)
    unit = ', change\nfrom dense start (%)' if is_quality else \
        f'\n({metric.unit})'
    axes.set_ylabel(literal(f'{metric.title}{unit}'))


def _with_start(scene: Scene, durations: Sequence[str]) -> tuple[str, ...]:
    """Those whose dense start has a quality that others are relative to."""
    starts = {
        duration:
        quality_of_start(scene.summary, Place(scene.model.name, duration))
        for duration in durations
    }
    return tuple(name for name, of in starts.items() if of and of.value > 0)


def _relative_caption(scene: Scene, durations: Sequence[str]) -> Iterator[str]:
    shown = _with_start(scene, durations)
    if shown:
        yield (
            'Bars of changes from the dense start are over the examples of '
            'both as well.'
        )
    left_out = [duration for duration in durations if duration not in shown]
    if left_out:
        assert scene.summary.quality is not None  # Who asks has looked.
        yield (
            f'Left out: the change in {scene.summary.quality.metric.title} '
            f"after {', '.join(left_out)}, as the dense start is not measured "
            'or scores 0 or less, which nothing can be relative to.'
        )


def draw_quality(scene: Scene) -> Optional[Drawing]:
    """The paper's Figure 4: absolute quality, a panel for each duration.

    Returns:
        None where no arm has a result, or no tasks were asked.

    Raises:
        ConfigError: The paper has no such model as the study says.
    """
    durations = scene.durations()
    quality = scene.summary.quality
    if not durations or quality is None:
        return None
    n_panels = len(durations)
    figure, panels = _grid(scene, n_panels, n_panels, sharey=True)
    for axes, duration in zip(panels, durations, strict=True):
        _Panel(axes, scene, quality.metric, (duration, )).plot()
        axes.set_title(f'pretraining: {duration}')
    panels[0].set_ylabel(literal(quality.metric.title))
    _legend(figure, scene, durations)
    return Drawing(
        f'quality_{scene.model.name}',
        f'{scene.model.name}: {quality.metric.title}',
        f'{quality.metric.title}: 0 is guessing, 1 all right. '
        f'{_caption(scene, durations)}',
        figure,
    )


class _Panel:
    """One metric against budgets, a line for each arm and duration.

    Args:
        axes: Where to draw.
        scene: What is drawn.
        metric: Of the y axis.
        durations: Of pretraining.
        relative: Whether its change from the dense start is drawn, in percent,
            and not its value.
    """

    def __init__(
        self,
        axes: Axes,
        scene: Scene,
        metric: Metric,
        durations: Sequence[str],
        relative: bool = False,
    ):
        self.axes = axes
        self.scene = scene
        self.metric = metric
        self.relative = relative
        self.scale = 100 if relative else 1
        self.durations = durations
        self.paper = {
            name: duration
            for name, duration in paper_durations(scene.model).items()
            if name in durations and not metric.is_held_out
        }
        self.largest = max(
            *scene.model.budgets,
            *(max(of.arms['cpt']) for of in self.paper.values()),
            0.0,  # One number alone would be no list of them.
        )

    def plot(self) -> None:
        """Draws the arms, the dense starts, and the paper behind them."""
        for duration, paper in self.paper.items():
            self._plot_paper(duration, paper)
        # The dense start's training loss is on other text.
        has_starts = self.metric.is_held_out or self.metric.higher_is_better
        if has_starts and not self.relative:
            for duration in self.durations:
                self._plot_start(duration)
        lines = [(arm, duration)
                 for duration in self.durations
                 for arm in self.scene.model.arms]
        step = min(_APART, _MOST_APART / len(lines)) * self.largest
        for index, (arm, duration) in enumerate(lines):
            apart = (index - (len(lines) - 1) / 2) * step
            self._plot_arm(arm, duration, apart)
        self.axes.set_xlim(0, _MARGIN * self.largest)

    def _mean(self, point: Place) -> Optional[Mean]:
        if self.relative:
            return relative_to_start(self.scene.summary, point)
        return self.scene.summary.mean(self.metric, point)

    def _plot_arm(self, arm: str, duration: str, apart: float) -> None:
        summary, look = self.scene.summary, self.scene.look
        rows = []
        for point in summary.points(self.scene.model, duration, arm):
            mean = self._mean(point)
            if mean:
                ends = mean.interval or (math.nan, math.nan)
                values = np.array([mean.value, *ends]) * self.scale
                rows.append([point.budget + apart, *values])
        if rows:
            x, y, low, high = np.array(rows).T
            self.axes.errorbar(
                x,
                y,
                yerr=np.maximum((y - low, high - y), 0),  # Rounding.
                capsize=3,
                linewidth=1.6,
                markersize=5,
                **look.style(arm, duration),
            )

    def _plot_start(self, duration: str) -> None:
        mean = self._mean(Place(self.scene.model.name, duration))
        if mean:
            self.axes.axhline(
                mean.value,
                color=DENSE,
                linewidth=1.2,
                linestyle=self.scene.look.lines[duration],
            )

    def _plot_paper(self, duration: str, paper: PaperDuration) -> None:
        look = self.scene.look
        of_quality = self.metric.higher_is_better
        for arm, points in paper.arms.items():
            values = [
                point.core_average if of_quality else point.final_loss
                for point in points.values()
            ]
            if self.relative:
                values = [
                    self.scale * relative_change(value, paper.dense_start)
                    for value in values
                ]
            self.axes.plot(
                list(points),
                values,
                **look.style(self.scene.paper_arm(arm), duration),
                **BEHIND,
            )
        if of_quality and not self.relative:
            self.axes.axhline(
                paper.dense_start,
                color=DENSE,
                linestyle=look.lines[duration],
                **_LINE_BEHIND,
            )


def _grid(
    scene: Scene,
    n_panels: int,
    n_columns: int,
    sharey: bool = False,
) -> tuple[Figure, list[Axes]]:
    n_rows = math.ceil(n_panels / n_columns)
    figure = Figure(
        figsize=(min(max(5.5, 4.6 * n_columns), 11), 0.9 + 3.4 * n_rows),
        layout='constrained',
    )
    grid = figure.subplots(n_rows, n_columns, squeeze=False, sharey=sharey)
    panels = list(grid.flat)
    for axes in panels[n_panels:]:
        axes.remove()
    for axes in panels[:n_panels]:
        tidy(axes)
    figure.get_layout_engine().set(wspace=0.06)  # type: ignore
    figure.supxlabel(_X_LABELS[scene.model.unit], fontsize='medium')
    return figure, panels[:n_panels]


def _legend(
    figure: Figure,
    scene: Scene,
    durations: Sequence[str],
) -> None:
    handles = scene.look.arm_handles(scene.model.arms)
    if len(durations) > 1:
        handles += scene.look.duration_handles(durations)
    handles.append(
        Line2D([], [], color=DENSE, linewidth=1.2, label='dense start')
    )
    if any(duration in paper_durations(scene.model) for duration in durations):
        handles.append(
            Line2D([], [], color='black', marker='o', label='paper', **BEHIND),
        )
    legend_above(figure, handles)


def _caption(scene: Scene, durations: Sequence[str]) -> str:
    n_seeds = len(scene.summary.grid.study.seeds)
    if n_seeds > 1:
        text = f'Means over up to {n_seeds} seeds; bars: 95 % over seeds.'
    else:
        text = 'One seed; bars, where there are any: 95 % over examples.'
    if len(scene.model.arms) > 1:
        text += ' Points at one budget are set apart a little.'
    if any(duration in paper_durations(scene.model) for duration in durations):
        text += (
            ' Lighter, behind: the points of the paper (arXiv 2411.08968), '
            'whose data, models and number of tokens are others.'
        )
    return text
