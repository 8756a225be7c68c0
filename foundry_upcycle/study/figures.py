"""Figures of a study, as PNG files."""

from pathlib import Path
from typing import Mapping

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from foundry_upcycle.gauntlet.figure import COLORS, MARKERS
from foundry_upcycle.study.results import RunResult

matplotlib.use('Agg')

import matplotlib.pyplot as plt  # noqa: E402

__all__ = [
    'plot_expert_load',
    'plot_loss',
]

_SMOOTHING_STEPS = 20


def plot_loss(
    arms: Mapping[str, tuple[RunResult, float]],
    path: Path,
) -> None:
    """Plots training loss against FLOPs, the curves of all arms in one panel.

    Args:
        arms: Label -> the run and its FLOPs a step.
        path: File to write.
    """
    figure, axes = plt.subplots(figsize=(7, 4), layout='constrained')
    for index, (label, (run, flops)) in enumerate(arms.items()):
        color = COLORS[index]
        loss = run.train_loss
        teraflops = flops * np.arange(1, len(loss) + 1) / 1e12
        axes.plot(teraflops, loss, color=color, alpha=0.2, linewidth=0.8)
        window = min(_SMOOTHING_STEPS, len(loss))
        smooth = np.convolve(loss, np.ones(window) / window, mode='valid')
        axes.plot(
            teraflops[window - 1:],
            smooth,
            color=color,
            linewidth=2,
            label=f'{label} (mean of {window} steps)',
        )
    axes.set_xlabel('training compute after the dense start (TFLOP)')
    axes.set_ylabel('training cross entropy (nats per token)')
    axes.legend(frameon=False)
    _save(figure, axes, path)


def plot_expert_load(run: RunResult, path: Path) -> None:
    """Plots how evenly the experts are used: over time, and at the end.

    Args:
        run: A run of a mixture of experts.
        path: File to write.

    Raises:
        ValueError: The run logged no expert shares.
    """
    if run.expert_shares is None:
        raise ValueError(
            'expert_shares=None: the run logged no expert shares. Add the ' +
            'callback router_monitor to its YAML.',
        )
    percent = 100 * run.expert_shares
    n_layers, n_experts = percent.shape[1:]
    figure, (left, right) = plt.subplots(
        ncols=2,
        figsize=(10, 4),
        layout='constrained',
    )
    for layer in range(n_layers):
        left.plot(
            run.share_steps,
            percent[:, layer].max(axis=-1),
            color=COLORS[layer % len(COLORS)],
            marker=MARKERS[layer % len(MARKERS)],
            markersize=4,
            label=f'layer {layer}',
        )
    left.axhline(
        100 / n_experts,
        color='black',
        linestyle='--',
        linewidth=1,
        label='even load',
    )
    left.set_xlabel('training step')
    left.set_ylabel('load of the busiest expert (% of token-slots)')
    left.set_ylim(bottom=0)
    left.legend(frameon=False, ncols=2)
    image = right.imshow(percent[-1], cmap='cividis', vmin=0, aspect='auto')
    middle = percent[-1].max() / 2
    for layer, expert in np.ndindex(n_layers, n_experts):
        value = percent[-1, layer, expert]
        color = 'white' if value < middle else 'black'
        right.text(
            expert,
            layer,
            f'{value:.0f}',
            color=color,
            ha='center',
            va='center',
        )
    right.set_xlabel('expert')
    right.set_ylabel('layer')
    right.set_xticks(range(n_experts))
    right.set_yticks(range(n_layers))
    figure.colorbar(image, label='load at the end (% of token-slots)')
    _save(figure, left, path)


def _save(figure: Figure, axes: Axes, path: Path) -> None:
    axes.spines[['top', 'right']].set_visible(False)
    axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
