"""How evenly tokens were spread over experts while serving."""

import math
from typing import Iterator, Optional

import numpy as np
from matplotlib.figure import Figure

from benchmarks.inference.report.expert_load import expert_load
from benchmarks.inference.report.figures.look import Drawing, Look, file_name
from benchmarks.inference.report.records import Arm

__all__ = ['draw_experts']

# Panels side by side.
_COLUMNS = 4


def draw_experts(look: Look, size: str) -> Optional[Drawing]:
    """A heat map of layers and experts for each mixture.

    Returns:
        None where no expert load was recorded.
    """
    loads = list(_loads(look, size))
    if not loads:
        return None
    most = max(2.0, *(load.max() for _, load in loads))
    n_columns = min(_COLUMNS, len(loads))
    n_rows = math.ceil(len(loads) / n_columns)
    figure = Figure(
        figsize=(max(6.4, 1 + 2.8 * n_columns), 0.8 + 3.6 * n_rows),
        layout='constrained',
    )
    grid = figure.subplots(n_rows, n_columns, squeeze=False)
    for axes in grid.flat[len(loads):]:
        axes.remove()
    panels = grid.flat[:len(loads)]
    for axes, (arm, load) in zip(panels, loads, strict=True):
        axes.imshow(
            load,
            aspect='auto',
            cmap='cividis',
            vmin=0,
            vmax=most,
            interpolation='nearest',
        )
        axes.set_title(look.summary.name(size, arm), fontsize=10)
        axes.set_xlabel('expert')
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.yaxis.get_major_locator().set_params(integer=True)
    for axes in grid[:, 0]:
        axes.set_ylabel('layer')
    figure.colorbar(
        panels[0].images[0], ax=list(panels), label='load (1 = even)'
    )
    title = f'{size}: expert load'
    figure.suptitle(f'{title}{look.second_line}', fontsize=11)
    return Drawing(
        file_name('experts', size),
        title,
        "Each expert's share of a layer's tokens, times the number of experts: "
        'at 1 all have as many. Mean over the points that recorded it'
        f'{look.summary.labelled}.',
        figure,
    )


def _loads(look: Look, size: str) -> Iterator[tuple[Arm, np.ndarray]]:
    for arm in look.summary.mixtures(size):
        load = expert_load(look.summary, size, arm)
        if load is not None:
            yield arm, load
