"""How much of the gap to the dense model each variant closes."""

from typing import Any, Mapping, Optional, Sequence

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
from benchmarks.inference.report.gaps import Gap, find_gaps

__all__ = ['draw_variants']

# Attribute of a gap -> how it is drawn, and how far from its row.
_MEASURES: Mapping[str, tuple[dict[str, Any], float]] = {
    'latency': ({
        'color': COLORS[0],
        'marker': 'o',
        'label': 'latency at a low rate',
    }, -0.12),
    'throughput': ({
        'color': COLORS[1],
        'marker': 's',
        'label': 'maximum throughput',
    }, 0.12),
}


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
    figure = Figure(
        figsize=(7.2, 2 + 0.45 * len(gaps)),
        layout='constrained',
    )
    axes = figure.subplots()
    for name, (style, apart) in _MEASURES.items():
        _plot(axes, [getattr(gap, name) for gap in gaps], style, apart)
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
            Line2D([], [], **style, linestyle='none')
            for style, _ in _MEASURES.values()
        ],
    )
    return Drawing(
        file_name('variants', size),
        f'{size}: variants',
        '(variant - base) / (dense - base), of mean latency at the lowest rate '
        'that the three keep up with, and of maximum throughput. 0 (solid) '
        'closes nothing, 100 % (dashed) serves like the dense model, beyond '
        'it is better than that, left of 0 is worse than without the variant. '
        f'Bars: 95 % over runs{look.summary.labelled}.',
        figure,
    )


def _name(look: Look, gap: Gap) -> str:
    return f'{gap.variant}, {look.summary.name(gap.size, gap.arm.base)}'


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
