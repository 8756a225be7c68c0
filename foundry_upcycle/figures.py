"""What all figures share: colours, markers, legends, files."""

import io
from typing import Any, Sequence

import matplotlib
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

__all__ = ['COLORS', 'MARKERS', 'legend_above', 'literal', 'render']

# Okabe and Ito's palette, told apart under every colour blindness.
COLORS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')
MARKERS = 'osD^vP'


def legend_above(
    figure: Figure,
    handles: Sequence[Any],
    most_columns: int = 4,
) -> None:
    """Says above all panels what is what, in as many columns as there is room.

    Args:
        figure: Of a constrained layout.
        handles: What the legend shows; each has its label.
        most_columns: Of the legend.
    """
    for n_columns in range(min(most_columns, len(handles)), 0, -1):
        legend = figure.legend(
            handles=handles,
            loc='outside upper center',
            ncols=n_columns,
            frameon=False,
        )
        if n_columns == 1 or _width(legend) <= figure.bbox.width:
            return
        legend.remove()


def _width(artist: Artist) -> float:
    return artist.get_window_extent().width


def literal(text: str) -> str:
    """Text of which Matplotlib takes no part for a formula."""
    return text.replace('$', r'\$')


def render(figure: Figure, file_format: str) -> bytes:
    """A figure as a file, the same bytes whenever it is drawn.

    Args:
        figure: To write; it keeps its layout from then on.
        file_format: ``png`` or ``svg``.
    """
    if isinstance(figure.get_layout_engine(), ConstrainedLayoutEngine):
        figure.draw_without_rendering()
        figure.set_layout_engine('none')
    file = io.BytesIO()
    # Ids in an SVG are random, and the date is written, unless told.
    nothing = {'Date': None} if file_format == 'svg' else {'Software': None}
    with matplotlib.rc_context({'svg.hashsalt': 'foundry_upcycle'}):
        figure.savefig(file, format=file_format, dpi=150, metadata=nothing)
    return file.getvalue()
