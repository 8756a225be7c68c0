"""How evenly the experts of a mixture are used, over time and at the end."""

from typing import Iterator

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from foundry_upcycle.figures import COLORS, MARKERS, legend_above
from foundry_upcycle.study.grid import Place
from foundry_upcycle.study.report.figures.look import Drawing, Scene, tidy
from foundry_upcycle.study.results import ExpertLoad, RunResult

__all__ = ['draw_expert_loads']

# More layers are told apart by shades instead of colours.
_MOST_COLORED = len(COLORS)
# More experts leave no room for numbers.
_MOST_NUMBERED = 16


def draw_expert_loads(scene: Scene) -> Iterator[Drawing]:
    """Of each arm that logged its loads, in one run.

    That of the longest duration, and of it the largest budget and the first
    seed that are there.
    """
    for arm in scene.model.arms:
        result = _longest(scene, arm)
        if result is None or result.expert_load is None:
            continue
        yield Drawing(
            f'experts_{scene.model.name}_{arm}',
            f'{scene.model.name}, {arm}: load of the experts',
            'Left: share of the token-slots that the busiest expert of each '
            'layer got; dashed: an even load. Right: shares of all experts '
            f'when last logged. Run: {result.run.name}.',
            _draw(result.expert_load),
        )


def _longest(scene: Scene, arm: str) -> RunResult | None:
    summary, model = scene.summary, scene.model

    def flops(duration: str) -> float:
        return summary.run(Place(model.name, duration)).flops

    for duration in sorted(model.durations, key=flops, reverse=True):
        for point in reversed(summary.points(model, duration, arm)):
            for result in summary.results(point).values():
                if result.expert_load is not None:
                    return result
    return None


def _draw(load: ExpertLoad) -> Figure:
    n_layers = len(load.layers)
    figure = Figure(
        figsize=(9.6, max(3.6, 1.2 + 0.24 * n_layers)),
        layout='constrained',
    )
    left, right = figure.subplots(ncols=2)
    figure.get_layout_engine().set(wspace=0.06)  # type: ignore
    _plot_busiest(figure, left, load)
    _plot_end(figure, right, load)
    return figure


def _plot_busiest(figure: Figure, axes: Axes, load: ExpertLoad) -> None:
    busiest_SL = 100 * load.shares_SLE.max(axis=-1)
    even = 100 / load.shares_SLE.shape[-1]
    n_layers = len(load.layers)
    by_color = n_layers <= _MOST_COLORED
    shades = matplotlib.colormaps['viridis']
    scale = Normalize(load.layers[0], max(load.layers[-1], load.layers[0] + 1))
    for index, layer in enumerate(load.layers):
        axes.plot(
            load.steps_S,
            busiest_SL[:, index],
            color=COLORS[index] if by_color else shades(scale(layer)),
            marker=MARKERS[index] if by_color else '',
            markersize=3,
            linewidth=1.2,
            label=f'layer {layer}',
        )
    axes.axhline(even, color='black', linestyle='--', linewidth=1, label='even')
    axes.set_xlabel('training step')
    axes.set_ylabel("busiest expert's load (% of token-slots)")
    axes.set_ylim(bottom=0, top=1.1 * max(busiest_SL.max(), even))
    tidy(axes)
    if by_color:
        legend_above(figure, axes.get_lines(), most_columns=7)
    else:
        figure.colorbar(
            ScalarMappable(scale, shades),
            ax=axes,
            label='layer',
            ticks=MaxNLocator(integer=True),
        )


def _plot_end(figure: Figure, axes: Axes, load: ExpertLoad) -> None:
    percent_LE = 100 * load.shares_SLE[-1]
    n_experts = percent_LE.shape[-1]
    image = axes.imshow(percent_LE, cmap='cividis', vmin=0, aspect='auto')
    if n_experts <= _MOST_NUMBERED:
        middle = percent_LE.max() / 2
        for row, expert in np.ndindex(*percent_LE.shape):
            value = percent_LE[row, expert]
            axes.text(
                expert,
                row,
                f'{value:.0f}',
                color='white' if value < middle else 'black',
                ha='center',
                va='center',
                fontsize='small',
            )
        axes.set_xticks(range(n_experts))
    axes.set_yticks(range(len(load.layers)), [str(i) for i in load.layers])
    axes.set_xlabel('expert')
    axes.set_ylabel('layer')
    figure.colorbar(image, ax=axes, label='load at the end (% of token-slots)')
