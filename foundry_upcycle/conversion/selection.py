"""Which experts of a mixture are kept, merged or averaged.

Shape suffixes: E experts.
"""

from typing import Optional, Sequence

import numpy as np

from foundry_upcycle.checkpoints.mixture import Mixture
from foundry_upcycle.checkpoints.shrunk import Kept, KeptExpert
from foundry_upcycle.config import ShrinkingConfig
from foundry_upcycle.conversion.calibration import Calibration
from foundry_upcycle.conversion.clusters import clusters

__all__ = ['select']


def select(
    mixture: Mixture,
    config: ShrinkingConfig,
    calibration: Optional[Calibration] = None,
) -> Kept:
    """What is left of each layer.

    Args:
        mixture: What is to be shrunk.
        config: What to.
        calibration: Of this mixture, where there is one.

    Raises:
        ConfigError: There are not so many experts, or too few would be left.
    """
    E = mixture.n_experts
    n = config.n_left(E, mixture.top_k)
    kept = {}
    for layer in mixture.ffns:
        statistics = calibration.layers[layer] if calibration else None
        load_E = statistics.load_E if statistics else np.ones(E)
        if config.dense in ('mean', 'weighted'):
            groups = [[*range(E)]]
        elif config.by == 'merge':
            groups = clusters(mixture, layer, n, load_E, statistics)
        elif config.by == 'norm' and statistics is not None:
            groups = _best(statistics.saliency_E, n)
        else:
            groups = _best(load_E, n)
        kept[layer] = _weighted(groups, load_E)
    return kept


def _best(score_E: np.ndarray, n: int) -> list[list[int]]:
    best = np.argsort(-score_E, kind='stable')[:n]
    return [[int(expert)] for expert in sorted(best)]


def _weighted(
    groups: Sequence[Sequence[int]],
    load_E: np.ndarray,
) -> list[KeptExpert]:
    """Members weigh by their load, as in MC-SMoE (arXiv 2310.01334).

    So do experts that stand side by side in a dense layer: their shares are
    what routers would give on average, had they only these to choose from.
    """
    group_loads = _shares([load_E[group].sum() for group in groups])
    return [
        KeptExpert([*group], _shares(load_E[group]), share)
        for group, share in zip(groups, group_loads)
    ]


def _shares(parts: Sequence[float] | np.ndarray) -> list[float]:
    parts = np.asarray(parts, dtype=float)
    if parts.sum() == 0:  # No text went there.
        parts = np.ones(len(parts))
    return (parts / parts.sum()).tolist()
