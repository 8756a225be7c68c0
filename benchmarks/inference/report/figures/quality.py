"""Quality against cost: a point for each server, the front marked."""

from typing import Any, Callable, Optional, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.inference.report.cells import NONE
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
from benchmarks.inference.report.quality import (
    Quality,
    front_of_latency,
    front_of_throughput,
)
from benchmarks.inference.report.quality_tables import megabytes

__all__ = ['draw_quality']

_Take = Callable[[Quality], Optional[Estimate]]
_FRONT = {'color': 'black', 'linewidth': 1, 'linestyle': '--'}


def draw_quality(
    look: Look,
    size: str,
    found: Sequence[Quality],
) -> Optional[Drawing]:
    """Loss against maximum throughput, and against latency at a low rate.

    Returns:
        None where neither was measured.
    """
    panels = [
        (
            'maximum throughput (tokens per second)',
            lambda q: q.throughput,
            front_of_throughput(found),
        ),
        (
            f'mean latency of a request at {found[0].rate or 0:g}/s (s)',
            lambda q: q.latency,
            front_of_latency(found),
        ),
    ]
    panels = [panel for panel in panels if any(map(panel[1], found))]
    if not panels:
        return None
    figure = Figure(figsize=(5.4 * len(panels), 5), layout='constrained')
    all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (label, take, front) in zip(all_axes, panels):
        _plot(axes, found, take, front)
        axes.set_xlabel(label)
        tidy(axes)
    all_axes[0].set_ylabel('loss on held-out text (nats per token)')
    title = f'{size}: quality against cost'
    figure.suptitle(f'{title}{look.second_line}', fontsize=11)
    add_legend(figure, _handles(look, size, found))
    return Drawing(
        file_name('quality', size),
        title,
        'A point for each server. Lower losses are better; throughput per '
        'device is better to the right, latency to the left. Filled, and on '
        'the dashed line: the front, off which another is better in one and '
        'no worse in the other, by means. In the legend the memory of the '
        'weights. Bars: 95 %, of losses over documents, of costs over runs'
        f'{look.summary.labelled}.',
        figure,
    )


def _plot(
    axes: Axes,
    found: Sequence[Quality],
    take: _Take,
    front: Sequence[bool],
) -> None:
    best = []
    for index, quality in enumerate(found):
        cost = take(quality)
        if cost is None:
            continue
        axes.errorbar(
            [cost.value],
            [quality.nll.value],
            xerr=errors([cost]),
            yerr=errors([quality.nll]),
            capsize=3,
            elinewidth=1,
            **_style(index, front[index]),
        )
        if front[index]:
            best.append((cost.value, quality.nll.value))
    axes.plot(*zip(*sorted(best)), **_FRONT, zorder=1)


def _style(index: int, is_on_front: bool) -> dict[str, Any]:
    """Filled on the front; each colour with each marker before one repeats."""
    n = len(COLORS)
    color = COLORS[index % n]
    return {
        'color': color,
        'marker': MARKERS[(index + index // n) % len(MARKERS)],
        'markersize': 8,
        'markerfacecolor': color if is_on_front else 'white',
        'linestyle': 'none',
    }


def _handles(look: Look, size: str, found: Sequence[Quality]) -> list[Line2D]:
    handles = []
    for index, quality in enumerate(found):
        name = look.summary.name(size, quality.arm)
        memory = megabytes(quality.weight_bytes)
        label = name if memory == NONE else f'{name}: {memory} MiB'
        handles.append(Line2D([], [], **_style(index, True), label=label))
    front = Line2D([], [], **_FRONT, label='front (filled)')
    return [*handles, front]
