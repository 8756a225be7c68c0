"""Groups of experts that can become one, as they are similar.

Shape suffixes: D d_model, E experts, F expert hidden.
"""

from itertools import combinations
from typing import Optional

import numpy as np
import torch

from foundry_upcycle.checkpoints.mixture import Mixture
from foundry_upcycle.conversion.calibration import LayerStatistics

__all__ = ['clusters', 'ward']

# Of one weight of all experts, at a time.
_BLOCK_BYTES = 64 * 2**20


def clusters(
    mixture: Mixture,
    layer: int,
    n: int,
    load_E: np.ndarray,
    statistics: Optional[LayerStatistics] = None,
) -> list[list[int]]:
    """The experts of a layer in ``n`` groups.

    Two are similar in their weights, and in what is routed to them where that
    is known: squared distances, each in units of its mean over all pairs.

    Args:
        mixture: The mixture.
        layer: Block index.
        n: Number of groups.
        load_E: How much an expert weighs, (E,).
        statistics: What the experts did on texts.
    """
    distance_EE = _relative(_weight_distances(mixture, layer))
    if statistics is not None:
        distance_EE = distance_EE + _relative(_routing_distances(statistics))
    return ward(distance_EE, load_E, n)


def ward(
    distance_EE: np.ndarray,
    load_E: np.ndarray,
    n: int,
) -> list[list[int]]:
    """Ward's clustering (1963) of points that weigh differently.

    Of all pairs of groups those become one whose weighted mean then is nearest
    to them: l_a l_b / (l_a + l_b) times the squared distance of their means,
    by the formula of Lance and Williams (1967). So experts that no token goes
    to cost nothing. scipy's takes no weights.

    Args:
        distance_EE: Squared Euclidean distances, (E, E).
        load_E: Weights, (E,).
        n: Number of groups.

    Returns:
        Members of each, ascending, in the order of the first.
    """
    E = len(load_E)
    # In units in which 1 is small: an unused expert is not torn in two ways.
    load = dict(enumerate(np.maximum(load_E / max(load_E.sum(), 1), 1e-9)))
    groups = {e: [e] for e in range(E)}
    cost = {
        frozenset((a, b)):
        distance_EE[a, b] * load[a] * load[b] / (load[a] + load[b])
        for a, b in combinations(range(E), 2)
    }
    while len(groups) > n:
        a, b = min(combinations(groups, 2), key=lambda ab: cost[frozenset(ab)])
        for c in groups.keys() - {a, b}:
            cost[frozenset((a, c))
                ] = ((load[a] + load[c]) * cost[frozenset((a, c))] +
                     (load[b] + load[c]) * cost[frozenset((b, c))] -
                     load[c] * cost[frozenset((a, b))]) / (
                         load[a] + load[b] + load[c]
                     )
        groups[a] += groups.pop(b)
        load[a] += load[b]
    return sorted(sorted(group) for group in groups.values())


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
