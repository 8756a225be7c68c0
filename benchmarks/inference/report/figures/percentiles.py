"""How requests' times are spread, at a rate that all models keep up with."""

from typing import Optional

import numpy as np
from matplotlib.figure import Figure

from benchmarks.inference.report.figures.look import (
    Drawing,
    Look,
    add_legend,
    file_name,
    tidy,
)
from benchmarks.inference.report.percentiles import PERCENTILES, TIMES, pooled

__all__ = ['draw_percentiles']


def draw_percentiles(look: Look, size: str) -> Optional[Drawing]:
    """Shares of requests in the steady state that are done within a time.

    Returns:
        None where models share no rate without saturation.
    """
    summary, arms = look.summary, look.summary.arms(size)
    rates = summary.keeping_up(size, arms)
    if not rates:
        return None
    figure = Figure(figsize=(8.4, 4.4), layout='constrained')
    panels = figure.subplots(1, len(TIMES), sharey=True)
    for axes, name in zip(panels, TIMES, strict=True):
        for arm in arms:
            seconds = pooled(summary, size, arm, rates[-1], name)
            style = look.style(arm)
            axes.ecdf(
                seconds,
                color=style['color'],
                linestyle=style['linestyle'],
            )
            axes.plot(
                np.percentile(seconds, PERCENTILES),
                np.divide(PERCENTILES, 100),
                color=style['color'],
                marker=style['marker'],
                linestyle='none',
            )
        axes.set_xlim(left=0)
        axes.locator_params(axis='x', nbins=6)
        axes.set_ylim(0, 1.03)
        axes.set_xlabel(f'{name} (s)')
        tidy(axes)
    panels[0].set_ylabel('share of requests')
    title = f'{size}: time to first token and latency at {rates[-1]:g}/s'
    figure.suptitle(f'{title}{look.second_line}', fontsize=11)
    add_legend(figure, look.handles(size, arms))
    return Drawing(
        file_name('percentiles', size),
        title,
        f'At {rates[-1]:g} requests/s, the highest rate that every model was '
        'measured at without saturation: which share of the requests of all '
        'runs is done within a time, without those that came before the '
        'steady state. Markers: '
        f"{', '.join(f'{p} %' for p in PERCENTILES)}{summary.labelled}.",
        figure,
    )
