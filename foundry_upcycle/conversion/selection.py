"""Which experts of a mixture are kept, merged or averaged.

Shape suffixes: D d_model, E experts, R rows.
"""

from typing import Optional, Sequence

import numpy as np
import torch
from scipy.cluster.hierarchy import cut_tree, linkage
from scipy.spatial.distance import squareform

from foundry_upcycle.checkpoints.mixture import Mixture
from foundry_upcycle.checkpoints.shrunk import Kept, KeptExpert
from foundry_upcycle.config import ShrinkingConfig
from foundry_upcycle.conversion.calibration import Calibration, LayerStatistics
from foundry_upcycle.errors import ConfigError

__all__ = ['select']

# Of one weight of all experts, at a time.
_BLOCK_BYTES = 64 * 2**20


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
    if config.experts is None:
        n = E if config.keep is None else config.keep
        _check_number('--keep', n, 1, E)
    else:
        n = config.experts
        _check_number('--experts', n, mixture.top_k, E)
    kept = {}
    for layer in mixture.ffns:
        statistics = calibration.layers[layer] if calibration else None
        groups = _groups(mixture, layer, n, config, statistics)
        load_E = statistics.load_E if statistics else np.ones(E)
        kept[layer] = _weighted(groups, load_E)
    return kept


def _check_number(key: str, n: int, least: int, most: int) -> None:
    if n > most:
        raise ConfigError(
            key,
            n,
            f'the mixture has {most} experts in each layer.',
            f'keep at most {most}.',
        )
    if n < least:
        raise ConfigError(
            key,
            n,
            f'a token goes to {least} experts of a layer (moe_top_k).'
            if least > 1 else 'nothing would be left.',
            f'keep at least {least}' +
            (', or make a dense model (--dense).' if least > 1 else '.'),
        )


def _groups(
    mixture: Mixture,
    layer: int,
    n: int,
    config: ShrinkingConfig,
    statistics: Optional[LayerStatistics],
) -> list[list[int]]:
    """Experts that become one, in the order of the first of each."""
    if config.dense in ('mean', 'weighted'):
        return [[*range(mixture.n_experts)]]
    if config.by == 'merge':
        return _clusters(_distances(mixture, layer, statistics), n)
    score_E = np.zeros(mixture.n_experts)
    if statistics:
        is_norm = config.by == 'norm'
        score_E = statistics.saliency_E if is_norm else statistics.load_E
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


def _clusters(distance_EE: np.ndarray, n: int) -> list[list[int]]:
    """Groups of similar experts, by average linkage.

    As HC-SMoE (arXiv 2410.08589), which compares outputs.
    """
    E = len(distance_EE)
    if n == E:
        return [[expert] for expert in range(E)]
    tree = linkage(squareform(distance_EE, checks=False), method='average')
    label_E = cut_tree(tree, n_clusters=n)[:, 0]
    groups = [np.flatnonzero(label_E == label).tolist() for label in range(n)]
    return sorted(groups)


def _distances(
    mixture: Mixture,
    layer: int,
    statistics: Optional[LayerStatistics],
) -> np.ndarray:
    """How different experts are: in weights, and in what is routed to them.

    Each in units of its mean over the layer's pairs.
    """
    distance_EE = _relative(_weight_distances(mixture, layer))
    if statistics is not None:
        distance_EE = distance_EE + _relative(_routing_distances(statistics))
    return distance_EE


def _relative(distance_EE: np.ndarray) -> np.ndarray:
    total = distance_EE.sum()
    n_pairs = len(distance_EE) * (len(distance_EE) - 1)
    return distance_EE * (n_pairs / total) if total > 0 else distance_EE


def _weight_distances(mixture: Mixture, layer: int) -> np.ndarray:
    """Squared Euclidean distances of all weights, (E, E).

    Experts of one dense parent have their hidden channels in one order.
    """
    E, F = mixture.n_experts, mixture.hidden_size
    gram_EE = torch.zeros(E, E, dtype=torch.float64)
    for name in mixture.names(layer):
        D = mixture.source.tensors[name.name].shape[1]
        step = max(1, _BLOCK_BYTES // (4 * E * D))
        for start in range(0, F, step):
            stop = min(F, start + step)
            rows = [
                mixture.rows(name, e, start, stop).float().flatten()
                for e in range(E)
            ]
            # From one of them, or what is common to all would hide the rest.
            moved = torch.stack(rows) - rows[0]
            gram_EE += (moved @ moved.t()).double()
    square_E = gram_EE.diagonal()
    distance_EE = square_E[:, None] + square_E - 2 * gram_EE
    return distance_EE.clamp(min=0).fill_diagonal_(0).numpy()


def _routing_distances(statistics: LayerStatistics) -> np.ndarray:
    """1 - the cosine of which tokens go to one and to the other, (E, E)."""
    together_EE = np.array(statistics.coactivation, dtype=float)
    load_E = np.maximum(statistics.load_E, 1)
    distance_EE = 1 - together_EE / np.sqrt(np.outer(load_E, load_E))
    np.fill_diagonal(distance_EE, 0)
    return distance_EE
