"""What rising rates of requests do: Figures 2 and 3 of the paper."""

from typing import Any, Optional

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.inference.report.estimates import Estimate
from benchmarks.inference.report.figures.look import (
    Drawing,
    Look,
    add_legend,
    errors,
    file_name,
    hollow,
    tidy,
)
from benchmarks.inference.report.records import Arm

__all__ = ['draw_latency', 'draw_rates']

# Latencies are on a logarithmic scale where they differ by more.
_MOST_LINEAR = 20
# How far axes go beyond what is drawn.
_MARGIN = 1.06
_HOLLOW = 'saturated (hollow)'


def draw_latency(look: Look, size: str) -> Optional[Drawing]:
    """Mean latency against throughput, a line for each model.

    Returns:
        None where nothing was measured at a bounded rate.
    """
    figure = Figure(figsize=(7.2, 5), layout='constrained')
    axes = figure.subplots()
    latencies = _plot_lines(
        look,
        size,
        axes,
        lambda m: m.throughput,
        lambda m: m.latency,
    )
    if not latencies:
        return None
    _scale(axes, latencies)
    axes.set_xlim(left=0)
    axes.set_xlabel('throughput (input + output tokens per second)')
    axes.set_ylabel('mean latency of a request (s)')
    look.title(axes, f'{size}: latency against throughput')
    _finish(figure, axes, look, size, [])
    return Drawing(
        file_name('latency', size),
        f'{size}: latency against throughput',
        'As Figures 2 and 3 of the paper: mean seconds of a request, against '
        'input and output tokens a second in the steady state, at rising '
        'rates of requests along each line. Means over runs, bars: 95 % both '
        'ways, cut where they leave the figure. Hollow: saturated in at least one run, where latency is that '
        'of a growing queue and depends on how long one measures. Without the '
        f'unbounded rate{look.summary.labelled}.',
        figure,
    )


def draw_rates(look: Look, size: str) -> Optional[Drawing]:
    """Achieved against offered requests a second.

    Returns:
        None where nothing was measured at a bounded rate.
    """
    figure = Figure(figsize=(7.2, 5), layout='constrained')
    axes = figure.subplots()
    achieved = _plot_lines(
        look,
        size,
        axes,
        lambda m: m.offered,
        lambda m: m.achieved,
    )
    if not achieved:
        return None
    rates = [
        r for arm in look.summary.arms(size)
        for r in look.summary.rates(size, arm)
    ]
    end = _MARGIN * max(*achieved, *rates)
    line = {'color': 'black', 'linewidth': 1, 'linestyle': '--'}
    axes.plot([0, end], [0, end], **line, zorder=1)
    axes.set_xlim(0, end)
    axes.set_ylim(0, end)
    axes.set_xlabel('offered (requests per second)')
    axes.set_ylabel('achieved (requests per second)')
    look.title(axes, f'{size}: offered and achieved requests')
    diagonal = Line2D([], [], **line, label='achieved = offered')
    _finish(figure, axes, look, size, [diagonal])
    return Drawing(
        file_name('rates', size),
        f'{size}: offered and achieved requests',
        'Requests a second that were sent, and that were answered. A server '
        'that keeps up is on the dashed diagonal. Means over runs, bars: 95 %, cut where they '
        f'leave the figure; hollow: saturated in at least one run{look.summary.labelled}.',
        figure,
    )


def _plot_lines(
    look: Look,
    size: str,
    axes: Axes,
    take_x: Any,
    take_y: Any,
) -> list[float]:
    """Draws each model's rates; returns all that is drawn, upwards."""
    ys = []
    for arm in look.summary.arms(size):
        found = _line(look, size, arm, take_x, take_y)
        if found:
            _plot_line(axes, look.style(arm), found)
            ys += [y.value for _, _, y in found]
    return ys


def _scale(axes: Axes, latencies: list[float]) -> None:
    """Of the latencies drawn; wide intervals are cut, not fitted in."""
    if max(latencies) <= _MOST_LINEAR * min(latencies):
        axes.set_ylim(0, 1.1 * max(latencies))
        return
    axes.set_yscale('log')
    axes.set_ylim(min(latencies) / 1.5, max(latencies) * 1.5)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f'{y:g}'))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _line(
    look: Look,
    size: str,
    arm: Arm,
    take_x: Any,
    take_y: Any,
) -> list[tuple[bool, Estimate, Estimate]]:
    """Rate by rate whether it is saturated, and where it is drawn."""
    summary, found = look.summary, []
    for rate in summary.rates(size, arm):
        x = summary.mean(size, arm, rate, take_x)
        y = summary.mean(size, arm, rate, take_y)
        if x is not None and y is not None:
            found.append((summary.is_saturated(size, arm, rate), x, y))
    return found


def _plot_line(
    axes: Axes,
    style: dict[str, Any],
    found: list[tuple[bool, Estimate, Estimate]],
) -> None:
    xs = [x for _, x, _ in found]
    ys = [y for _, _, y in found]
    x, y = (np.array([e.value for e in of]) for of in (xs, ys))
    axes.errorbar(
        x,
        y,
        xerr=errors(xs),
        yerr=errors(ys),
        color=style['color'],
        linestyle='none',
        linewidth=1,
        alpha=0.6,
    )
    axes.plot(x, y, **style, markersize=6)
    is_hollow = np.array([is_saturated for is_saturated, _, _ in found])
    axes.plot(x[is_hollow], y[is_hollow], **hollow(style), markersize=6)


def _finish(
    figure: Figure,
    axes: Axes,
    look: Look,
    size: str,
    more: list[Line2D],
) -> None:
    tidy(axes)
    shape = {'color': 'black', 'marker': 'o', 'linestyle': 'none'}
    add_legend(
        figure,
        [
            *look.handles(size, look.summary.arms(size)),
            Line2D([], [], **hollow(shape), label=_HOLLOW),
            *more,
        ],
    )
