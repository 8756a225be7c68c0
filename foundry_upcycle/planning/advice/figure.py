"""Draws predicted losses against the budget."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from foundry_upcycle.figures import COLORS, MARKERS, legend_above, literal
from foundry_upcycle.planning.advice.advise import Advice
from foundry_upcycle.planning.advice.arms import ARMS
from foundry_upcycle.planning.advice.outside import model_outside
from foundry_upcycle.planning.advice.text import count

__all__ = ['draw_advice']

# How far curves go on beyond the budgets that were asked for.
_MARGIN = 1.25
_N_PLACES = 200


def draw_advice(advice: Advice) -> Figure:
    """Loss against budget, both arms with intervals, and the break-even."""
    figure = Figure(figsize=(7.2, 4.8), layout='constrained')
    axes = figure.subplots()
    fractions = _fractions(advice)
    _plot_arms(axes, advice, fractions)
    _mark_crossing(axes, advice, fractions)
    _mark_outside(axes, advice, fractions)
    axes.set_xscale('log')
    axes.set_xlim(fractions[0], fractions[-1])
    places = [budget.fraction for budget in advice.budgets]
    axes.set_xticks(places, [f'{place:g}' for place in places])
    axes.minorticks_off()
    axes.set_xlabel('FLOPs of the second phase over those of pretraining')
    scale = literal(advice.study)
    axes.set_ylabel(f'final loss in nats a token, on the scale of {scale}')
    axes.spines[['top', 'right']].set_visible(False)
    axes.grid(alpha=0.3)
    axes.set_title(_title(advice))
    handles, _ = axes.get_legend_handles_labels()
    legend_above(figure, handles, most_columns=2)
    return figure


def _title(advice: Advice) -> str:
    model, points = advice.model, advice.arms.points_of(advice.study)
    is_outside = model_outside(points, model.n_params, model.tokens)
    return (
        f'{count(model.n_params)} parameters, {count(model.tokens)} tokens '
        f"seen: {'outside the data' if is_outside else 'predicted'}"
    )


def _fractions(advice: Advice) -> np.ndarray:
    places = [budget.fraction for budget in advice.budgets]
    if advice.crossing.fraction is not None:
        places.append(advice.crossing.fraction)
    low, high = min(places) / _MARGIN, max(places) * _MARGIN
    return np.geomspace(low, high, _N_PLACES)


def _plot_arms(axes: Axes, advice: Advice, fractions: np.ndarray) -> None:
    curves = advice.curves(fractions)
    for arm, color, marker in zip(ARMS, COLORS, MARKERS):
        loss, half = curves.losses[arm], curves.half_widths[arm]
        axes.plot(fractions, loss, color=color)
        axes.fill_between(
            fractions,
            loss - half,
            loss + half,
            color=color,
            alpha=0.15,
            linewidth=0,
        )
        axes.plot(
            [budget.fraction for budget in advice.budgets],
            [budget.losses[arm].value for budget in advice.budgets],
            color=color,
            marker=marker,
            linestyle='none',
            label=f'{arm} (band: 95 %, one run)',
        )


def _mark_crossing(axes: Axes, advice: Advice, fractions: np.ndarray) -> None:
    crossing = advice.crossing
    if crossing.fraction is not None:
        axes.axvline(
            crossing.fraction,
            color='black',
            linestyle='--',
            linewidth=1,
            label=f'break-even: {crossing.fraction:.2g}',
        )
    told = crossing.told_apart
    if told is not None and told[0] < fractions[-1]:
        axes.axvline(
            told[0],
            color='black',
            linestyle=':',
            linewidth=1,
            label=f'told apart from: {told[0]:.2g}',
        )


def _mark_outside(axes: Axes, advice: Advice, fractions: np.ndarray) -> None:
    """Shades budgets that no run of the data had."""
    points = advice.arms.points_of(advice.study)['cpt']
    data = [point.fraction for point in points]
    label = 'no run had such a budget'
    for low, high in (
        (fractions[0], min(data)),
        (max(data), fractions[-1]),
    ):
        if low < high:
            axes.axvspan(
                low,
                high,
                color='black',
                alpha=0.07,
                linewidth=0,
                label=label,
            )
            label = '_'  # Once.
