"""What all figures of the report share: colours, markers, legends, files."""

import io
import re
from dataclasses import dataclass
from typing import Any, Iterable, Optional, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.inference.report.estimates import Estimate
from benchmarks.inference.report.records import Arm
from benchmarks.inference.report.summary import Summary

__all__ = [
    'COLORS',
    'MARKERS',
    'Drawing',
    'Look',
    'add_legend',
    'errors',
    'file_name',
    'hollow',
    'render',
    'tidy',
]

# Okabe and Ito's palette, told apart under every colour blindness.
COLORS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')
MARKERS = 'osD^vP'
# One more for each time that the colours have been used up.
_LINES = ('-', '--', ':', '-.')
_HATCHES = ('', '//', '..', 'xx')
# Inches of a legend that an entry takes, and each letter of it.
_HANDLE, _LETTER = 0.6, 0.085


@dataclass(frozen=True, eq=False)
class Drawing:
    """A figure of the report.

    Args:
        name: Of its files, without the ending.
        title: What it shows, in a few words.
        caption: How to read it.
        figure: To be written.
    """

    name: str
    title: str
    caption: str
    figure: Figure


class Look:
    """One colour, marker and line for what is served, throughout the report.

    Args:
        summary: Of the study.
    """

    def __init__(self, summary: Summary):
        self.summary = summary
        arms = {arm for size in summary.sizes for arm in summary.arms(size)}
        self._places = {arm: i for i, arm in enumerate(sorted(arms))}

    def style(self, arm: Arm) -> dict[str, Any]:
        """How the line of an arm is drawn."""
        place = self._places[arm]
        return {
            'color': COLORS[place % len(COLORS)],
            'marker': MARKERS[place % len(MARKERS)],
            'linestyle': _LINES[place // len(COLORS) % len(_LINES)],
        }

    def bar_style(self, arm: Arm) -> dict[str, Any]:
        """How its bar is drawn."""
        place = self._places[arm]
        return {
            'facecolor': COLORS[place % len(COLORS)],
            'hatch': _HATCHES[place // len(COLORS) % len(_HATCHES)],
            'edgecolor': 'white',
        }

    def handles(self, size: str, arms: Iterable[Arm]) -> list[Line2D]:
        """A legend's entries."""
        return [
            Line2D([], [],
                   **self.style(arm),
                   label=self.summary.name(size, arm)) for arm in arms
        ]

    def title(self, axes: Axes, text: str) -> None:
        """Writes a title, and beneath it what to know of the measurement."""
        axes.set_title(f'{text}{self.second_line}', fontsize=11)

    @property
    def second_line(self) -> str:
        """The labels, on a line of their own; empty if there are none."""
        # Matplotlib takes what is between two dollars for a formula.
        labels = ', '.join(self.summary.labels).replace('$', r'\$')
        return f'\n({labels})' if labels else ''


def hollow(style: dict[str, Any]) -> dict[str, Any]:
    """As a style, with markers that are not filled and no line."""
    return {**style, 'markerfacecolor': 'white', 'linestyle': 'none'}


def errors(estimates: Sequence[Estimate]) -> np.ndarray:
    """How far intervals reach below and above: 2 rows; NaN where none."""
    nothing = (float('nan'), float('nan'))
    values = np.array([estimate.value for estimate in estimates])
    ends = np.array([estimate.interval or nothing for estimate in estimates])
    # Rounding must not turn them negative.
    return np.maximum((values - ends[:, 0], ends[:, 1] - values), 0)


def tidy(axes: Axes) -> None:
    """Takes off what is not needed."""
    axes.spines[['top', 'right']].set_visible(False)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)


def add_legend(figure: Figure, handles: Sequence[Any]) -> None:
    """Puts a legend below all else, off the data, as wide as the figure."""
    widths = [_HANDLE + _LETTER * len(h.get_label()) for h in handles]
    columns = len(handles)
    if sum(widths) > figure.get_figwidth():
        columns = max(1, int(figure.get_figwidth() / max(widths)))
    figure.legend(
        handles=handles,
        loc='outside lower center',
        ncols=columns,
        frameon=False,
    )


def file_name(kind: str, size: Optional[str] = None) -> str:
    """Name of a figure's files, of characters that a link can have."""
    name = kind if size is None else f'{kind}_{size}'
    return re.sub(r'[^A-Za-z0-9_.-]', '_', name)


def render(figure: Figure, file_format: str) -> bytes:
    """A figure as a file, the same bytes whenever it is drawn.

    Args:
        figure: To write.
        file_format: ``png`` or ``svg``.
    """
    file = io.BytesIO()
    # Ids in an SVG are random, and the date is written, unless told.
    nothing = {'Date': None} if file_format == 'svg' else {'Software': None}
    with rc_context({'svg.hashsalt': 'foundry_upcycle'}):
        figure.savefig(file, format=file_format, dpi=150, metadata=nothing)
    return file.getvalue()
