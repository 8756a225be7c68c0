"""How much of the gap to the dense model each variant closes."""

from typing import Any, Optional, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.inference.report.figures.look import (
    COLORS,
    Drawing,
    Look,
    add_legend,
    errors,
    file_name,
    tidy,
)
from benchmarks.inference.report.gaps import Gap, find_gaps, throughput_name

__all__ = ['draw_variants']

# How gaps are drawn, and how far from their rows.
_LATENCY = {'color': COLORS[0], 'marker': 'o'}, -0.12
_THROUGHPUT = {'color': COLORS[1], 'marker': 's'}, 0.12


def draw_variants(look: Look, size: str) -> Optional[Drawing]:
    """A row for each variant and mixture.

    Returns:
        None where there is none that closes, or widens, a gap.
    """
    gaps = [
        gap for gap in find_gaps(look.summary, size)
        if gap.latency or gap.throughput
    ]
    if not gaps:
        return None
    throughput = f'maximum {throughput_name(gaps)}'
    figure = Figure(
        figsize=(7.2, 2 + 0.45 * len(gaps)),
        layout='constrained',
    )
    axes = figure.subplots()
    _plot(axes, [gap.latency for gap in gaps], *_LATENCY)
    _plot(axes, [gap.throughput for gap in gaps], *_THROUGHPUT)
    axes.axvline(0, color='black', linewidth=1)
    axes.axvline(100, color='black', linewidth=1, linestyle='--')
    axes.set_yticks(range(len(gaps)), [_name(look, gap) for gap in gaps])
    axes.set_ylim(len(gaps) - 0.5, -0.5)
    axes.set_xlabel('share of the gap to dense that is closed (%)')
    tidy(axes)
    look.title(axes, f'{size}: gap to the dense model that variants close')
    add_legend(
        figure,
        [
            Line2D([], [], **style, linestyle='none', label=label)
            for (style, _), label in (
                (_LATENCY, 'latency at a low rate'),
                (_THROUGHPUT, throughput),
            )
        ],
    )
    return Drawing(
        file_name('variants', size),
        f'{size}: variants',
        '(variant - base) / (dense - base), of mean latency at the lowest rate '
        f'that the three keep up with, and of {throughput}. 0 (solid) '
        'closes nothing, 100 % (dashed) serves like the dense model, beyond '
        'it is better than that, left of 0 is worse than without the variant. '
        f'Bars: 95 % over runs{look.summary.labelled}.',
        figure,
    )


def _name(look: Look, gap: Gap) -> str:
    name = f'{gap.variant}, {look.summary.name(gap.size, gap.arm.base)}'
    return f'{name}, {gap.devices} devices' if gap.is_per_device else name


def _plot(
    axes: Axes,
    estimates: Sequence[Any],
    style: dict[str, Any],
    apart: float,
) -> None:
    rows = [(row, e) for row, e in enumerate(estimates) if e is not None]
    if rows:
        axes.errorbar(
            [100 * estimate.value for _, estimate in rows],
            [row + apart for row, _ in rows],
            xerr=100 * errors([estimate for _, estimate in rows]),
            linestyle='none',
            capsize=3,
            **style,
        )
