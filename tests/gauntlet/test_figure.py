"""Figures hold all that they show."""

import pytest
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from foundry_upcycle.figures import legend_above


@pytest.mark.parametrize(
    ('label', 'n_columns'),
    [('cpt', 4), ('pretraining: medium', 2), ('a' * 40, 1)],
)
def test_a_legend_is_as_wide_as_there_is_room(label: str, n_columns: int):
    figure = Figure(figsize=(5, 4), layout='constrained')
    figure.subplots()
    legend_above(figure, [Line2D([], [], label=label) for _ in range(6)])
    figure.draw_without_rendering()
    (legend, ) = figure.legends
    box = legend.get_window_extent()
    assert 0 <= box.x0 and box.x1 <= figure.bbox.width
    columns = {text.get_window_extent().x0 for text in legend.get_texts()}
    assert len(columns) == n_columns
