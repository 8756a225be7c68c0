"""Experts drawn at random, with exactly the shares that were asked for.

Legend: R rows (tokens) of a table, E experts, K experts of a token.
"""

from collections.abc import Sequence

import numpy as np

__all__ = ['ROWS', 'UNITS', 'count_experts', 'draw_table']

# A table is used again from its first row after this many tokens.
ROWS = 1 << 16

# Probabilities are whole numbers of 1 / UNITS: in floating point the sums that
# the draw depends on would round, and a token could get the same expert twice.
UNITS = 1 << 20


def draw_table(
    inclusion_E: Sequence[int],
    top_k: int,
    seed: int,
    layer: int,
) -> np.ndarray:
    """K distinct experts for each row: systematic sampling, in random order.

    Expert e is in a row with probability ``inclusion_E[e] / UNITS``, exactly:
    experts are laid end to end, each as long as its probability, on a line of
    length K, and those that lie under u, u + 1, ..., u + K - 1 are taken (Madow
    1949). None is longer than 1, so none is taken twice. Experts are laid out
    anew for each row, so any K of them can meet.

    Args:
        inclusion_E: Of each expert, in ``UNITS``; at most ``UNITS`` each, and
            ``top_k * UNITS`` together.
        top_k: K.
        seed: Of the table, with ``layer``.
        layer: Index of the mixture layer.

    Returns:
        Indices of experts, int32, (R, K); R is ``ROWS``.
    """
    generator = np.random.default_rng([seed, layer])
    n_experts = len(inclusion_E)
    order_RE = np.argsort(generator.random((ROWS, n_experts)), axis=1)
    ends_RE = np.cumsum(np.asarray(inclusion_E, np.int64)[order_RE], axis=1)
    first_R = generator.integers(UNITS, size=ROWS)
    taken_RK = first_R[:, None] + UNITS * np.arange(top_k)
    # The expert that covers a point is the first that ends beyond it.
    place_RK = (ends_RE[:, None, :] <= taken_RK[:, :, None]).sum(axis=2)
    return np.take_along_axis(order_RE, place_RK, axis=1).astype(np.int32)


def count_experts(
    table_RK: np.ndarray,
    n_experts: int,
    n_tokens: int,
) -> np.ndarray:
    """How many of the first ``n_tokens`` tokens went to each expert, (E,)."""
    rounds, rest = divmod(n_tokens, len(table_RK))
    whole_E = np.bincount(table_RK.ravel(), minlength=n_experts)
    part_E = np.bincount(table_RK[:rest].ravel(), minlength=n_experts)
    return rounds * whole_E + part_E
