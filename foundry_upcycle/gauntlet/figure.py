"""Draws the scores of models, as a PNG file."""

from pathlib import Path
from typing import IO, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from foundry_upcycle.figures import COLORS, MARKERS, legend_above, literal
from foundry_upcycle.gauntlet.report import Outcome, shown_categories
from foundry_upcycle.gauntlet.scores import Scores

matplotlib.use('Agg')

import matplotlib.pyplot as plt  # noqa: E402

__all__ = ['draw_scores', 'plot_scores']

# Rows are 1 apart.
_MOST_APART = 0.18
# Ends that are not drawn.
_NO_INTERVAL = (np.nan, np.nan)


def plot_scores(outcomes: Sequence[Outcome], file: Path | IO[bytes]) -> None:
    """Plots categories and averages, a panel for each gauntlet.

    Args:
        outcomes: Of the same models, one or more.
        file: PNG file to write.
    """
    figure = draw_scores(outcomes)
    figure.savefig(file, dpi=150, format='png')
    plt.close(figure)


def draw_scores(outcomes: Sequence[Outcome]) -> Figure:
    """What ``plot_scores`` writes. The caller closes it."""
    n_rows = max(len(_rows(outcome)) for outcome in outcomes)
    figure, panels = plt.subplots(
        ncols=len(outcomes),
        figsize=(1 + 5.5 * len(outcomes), 1.5 + 0.5 * n_rows),
        layout='constrained',
        sharex=True,
        squeeze=False,
    )
    for axes, outcome in zip(panels[0], outcomes, strict=True):
        _plot(axes, outcome)
    legend_above(figure, panels[0, 0].get_legend_handles_labels()[0])
    return figure


def _rows(outcome: Outcome) -> list[tuple[str, str]]:
    """Kind and name of what is shown, from top to bottom."""
    gauntlet = outcome.gauntlet
    return [
        *(('categories', name) for name in shown_categories(gauntlet)),
        *(('averages', name) for name in gauntlet.averages),
    ]


def _plot(axes: Axes, outcome: Outcome) -> None:
    rows = _rows(outcome)
    n_models = len(outcome.scores)
    apart = min(_MOST_APART, 0.8 / n_models)
    middle = (n_models - 1) / 2
    for index, scores in enumerate(outcome.scores):
        _plot_model(axes, rows, scores, index, (index - middle) * apart)
    axes.axvline(0, color='black', linewidth=1, linestyle='--')
    n_categories = sum(kind == 'categories' for kind, _ in rows)
    axes.axhline(n_categories - 0.5, color='gray', linewidth=0.8)
    axes.set_yticks(
        range(len(rows)),
        [literal(name.replace('_', ' ')) for _, name in rows],
    )
    for tick, (kind, _) in zip(axes.get_yticklabels(), rows, strict=True):
        tick.set_fontweight('bold' if kind == 'averages' else 'normal')
    axes.set_ylim(len(rows) - 0.5, -0.5)
    warning = '' if outcome.of_same_tasks else ' (not on the same examples)'
    axes.set_title(literal(f'{outcome.gauntlet.name}{warning}'))
    axes.set_xlabel('score: 0 is guessing, 1 all right (bars: 95 %)')
    axes.spines[['top', 'right']].set_visible(False)
    axes.grid(axis='x', alpha=0.3)


def _plot_model(
    axes: Axes,
    rows: Sequence[tuple[str, str]],
    scores: Scores,
    index: int,
    offset: float,
) -> None:
    places, values, low, high = [], [], [], []
    for place, (kind, name) in enumerate(rows):
        figure = getattr(scores, kind).get(name)
        if figure:
            places.append(place + offset)
            values.append(figure.value)
            ends = figure.interval or _NO_INTERVAL
            low.append(ends[0])
            high.append(ends[1])
    axes.errorbar(
        values,
        places,
        xerr=(np.subtract(values, low), np.subtract(high, values)),
        linestyle='none',
        marker=MARKERS[index % len(MARKERS)],
        color=COLORS[index % len(COLORS)],
        capsize=3,
        label=literal(scores.label),
    )
