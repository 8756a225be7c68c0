"""What drafting tokens brings at each rate."""

from typing import Optional, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.inference.report.estimates import Estimate
from benchmarks.inference.report.figures.look import (
    COLORS,
    MARKERS,
    Drawing,
    Look,
    add_legend,
    errors,
    file_name,
    tidy,
)
from benchmarks.inference.report.speculation import (
    Speculation,
    find_speculation,
)

__all__ = ['draw_speculation']


def draw_speculation(look: Look, size: str) -> Optional[Drawing]:
    """Acceptance rate and speed-up, rate by rate.

    Returns:
        None where nothing was drafted at a bounded rate.
    """
    found = [s for s in find_speculation(look.summary, size) if s.rate]
    if not found:
        return None
    figure = Figure(figsize=(8.4, 4.4), layout='constrained')
    panels = figure.subplots(1, 2)
    handles = []
    for index, arm in enumerate(dict.fromkeys(s.arm for s in found)):
        rows = [s for s in found if s.arm == arm]
        color = COLORS[index % len(COLORS)]
        marker = MARKERS[index % len(MARKERS)]
        accepted = [(s, s.acceptance) for s in rows if s.acceptance]
        _plot(panels[0], accepted, color, marker)
        # Of latency and of throughput: no line from one to the other.
        for is_saturated in (False, True):
            faster = [(s, s.speed_up)
                      for s in rows
                      if s.speed_up and s.is_saturated == is_saturated]
            _plot(panels[1], faster, color, marker)
        name = look.summary.name(size, arm)
        handles.append(Line2D([], [], color=color, marker=marker, label=name), )
    panels[0].set_ylim(0, 1)
    panels[0].set_ylabel('accepted share of draft tokens')
    panels[1].axhline(1, color='black', linewidth=1, linestyle='--')
    panels[1].set_ylabel('speed-up (1 = without drafts)')
    for axes in panels:
        axes.set_xlabel('offered (requests per second)')
        tidy(axes)
    handles.append(
        Line2D(
            [],
            [],
            color='black',
            marker='o',
            markerfacecolor='white',
            linestyle='none',
            label='saturated, of throughput (hollow)',
        ),
    )
    title = f'{size}: speculative decoding'
    figure.suptitle(f'{title}{look.second_line}', fontsize=11)
    add_legend(figure, handles)
    return Drawing(
        file_name('speculation', size),
        title,
        'Left: draft tokens that the model accepted. Right: mean latency '
        'without drafts divided by that with them; hollow where either is '
        'saturated: throughput with drafts divided by that without. Means over '
        f'runs, bars: 95 %{look.summary.labelled}.',
        figure,
    )


def _plot(
    axes: Axes,
    rows: Sequence[tuple[Speculation, Estimate]],
    color: str,
    marker: str,
) -> None:
    if not rows:
        return
    x = np.array([speculation.rate for speculation, _ in rows])
    y = np.array([estimate.value for _, estimate in rows])
    is_hollow = np.array([s.is_saturated for s, _ in rows])
    axes.errorbar(
        x,
        y,
        yerr=errors([estimate for _, estimate in rows]),
        color=color,
        marker=marker,
        capsize=3,
        elinewidth=1,
    )
    axes.plot(
        x[is_hollow],
        y[is_hollow],
        color=color,
        marker=marker,
        markerfacecolor='white',
        linestyle='none',
        zorder=3,  # Above what errorbar draws.
    )
