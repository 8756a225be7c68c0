"""Maximum throughput, and its drops beside the paper's."""

from typing import Any, Mapping, Optional, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from benchmarks.inference.report.figures.look import (
    Drawing,
    Look,
    add_legend,
    errors,
    tidy,
)
from benchmarks.inference.report.maximum import Maximum, find_maxima
from benchmarks.inference.report.paper import PAPER, paper_model
from benchmarks.inference.report.records import Arm

__all__ = ['draw_throughput']

# Of the space of a group of bars.
_FILLED = 0.8
_PAPER: Mapping[str, Any] = {
    'color': 'black',
    'marker': '*',
    'markersize': 13,
    'markerfacecolor': 'white',
    'linestyle': 'none',
}

# Size, model, where its bar is, and what it is of.
_Bar = tuple[str, Arm, float, Maximum]


def draw_throughput(look: Look) -> Optional[Drawing]:
    """Bars of all sizes and models, and of their drops.

    Returns:
        None where no maximum was measured.
    """
    summary = look.summary
    maxima = {size: find_maxima(summary, size) for size in summary.sizes}
    maxima = {size: found for size, found in maxima.items() if found}
    if not maxima:
        return None
    width = max(7.2, 1.5 + 2.2 * len(maxima))
    figure = Figure(figsize=(width, 7.5), layout='constrained')
    upper, lower = figure.subplots(2, height_ratios=(3, 2))
    n_most = max(len(found) for found in maxima.values())
    bars = _place(maxima, n_most)
    _plot_throughput(upper, look, bars, _FILLED / n_most)
    has_paper = _plot_drops(lower, look, bars, _FILLED / n_most)
    names = [_size_name(look, size) for size in maxima]
    for axes in (upper, lower):
        axes.set_xticks(range(len(maxima)), names)
        axes.set_xlim(-0.6, len(maxima) - 0.4)
        tidy(axes)
        axes.grid(visible=False, axis='x')
    look.title(upper, 'Maximum throughput')
    add_legend(figure, _handles(look, bars, has_paper))
    stars = (
        f' Stars: drops of the paper ({PAPER}; H100 GPUs, 3500 input and 300 '
        'output tokens).'
    ) if has_paper else ''
    return Drawing(
        'throughput',
        'Maximum throughput',
        'Above: input and output tokens a second at the most, on the plateau '
        'that throughput reaches at saturated rates (or, in a study without '
        'such, at the unbounded rate: see the tables). Below: by how much that '
        f'is less than the dense model serves.{stars} Bars: 95 % over runs'
        f'{summary.labelled}.',
        figure,
    )


def _size_name(look: Look, size: str) -> str:
    """Of a group of bars, with its devices where they differ."""
    n_devices = {
        n: look.summary.devices(n,
                                look.summary.arms(n)[0])
        for n in look.summary.sizes
        if look.summary.arms(n)
    }
    if len(set(n_devices.values())) == 1:
        return size
    return f'{size}\ndevices: {n_devices[size]}'


def _place(
    maxima: Mapping[str, Mapping[Arm, Maximum]],
    n_most: int,
) -> list[_Bar]:
    bars = []
    for group, (size, found) in enumerate(maxima.items()):
        for index, (arm, maximum) in enumerate(found.items()):
            apart = (index - (len(found) - 1) / 2) * _FILLED / n_most
            bars.append((size, arm, group + apart, maximum))
    return bars


def _plot_throughput(
    axes: Axes,
    look: Look,
    bars: Sequence[_Bar],
    width: float,
) -> None:
    for _, arm, x, maximum in bars:
        mean = maximum.throughput
        axes.bar(
            x,
            mean.value,
            0.92 * width,
            yerr=errors([mean]),
            **look.bar_style(arm),
            capsize=3,
            error_kw={'linewidth': 1},
        )
        _write(axes, x, mean, f'{mean.value:,.0f}')
    axes.margins(y=0.12)
    axes.set_ylabel('input + output tokens per second')


def _plot_drops(
    axes: Axes,
    look: Look,
    bars: Sequence[_Bar],
    width: float,
) -> bool:
    """Draws drops; whether the paper has one of them."""
    has_paper = False
    for size, arm, x, maximum in bars:
        if maximum.drop is not None:
            axes.bar(
                x,
                100 * maximum.drop.value,
                0.92 * width,
                yerr=100 * errors([maximum.drop]),
                **look.bar_style(arm),
                capsize=3,
                error_kw={'linewidth': 1},
            )
            paper = paper_model(size, arm)
            if paper and paper.drop is not None:
                # Beside the interval, not on it.
                axes.plot(x - width / 4, 100 * paper.drop, **_PAPER)
                has_paper = True
    axes.axhline(0, color='black', linewidth=0.8)
    axes.set_ylabel('drop against dense (%)')
    return has_paper


def _write(axes: Axes, x: float, mean: Any, text: str) -> None:
    """Writes a value above its bar and interval."""
    top = max(mean.value, mean.interval[1] if mean.interval else 0)
    axes.annotate(
        text,
        (x, top),
        xytext=(0, 3),
        textcoords='offset points',
        ha='center',
        fontsize=8,
    )


def _handles(
    look: Look,
    bars: Sequence[_Bar],
    has_paper: bool,
) -> list[Any]:
    names = {
        look.summary.name(size, arm): look.bar_style(arm)
        for size, arm, _, _ in bars
    }
    handles: list[Any] = [
        Patch(**style, label=name) for name, style in names.items()
    ]
    if has_paper:
        handles.append(Line2D([], [], **_PAPER, label="the paper's drop"))
    return handles
