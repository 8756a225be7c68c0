"""The recipe of Komatsuzaki et al. (arXiv 2212.05055): copies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from foundry_upcycle.recipes.base import DenseRows, ExpertRows

if TYPE_CHECKING:
    import torch

__all__ = ['copy']


def copy(dense_rows: DenseRows, rows: ExpertRows) -> torch.Tensor:
    """Every expert is the dense layer.

    Exact before training: whatever the routers choose, the model computes the
    dense function, as long as the combine weights of a token sum to 1.
    """
    return dense_rows(rows.start, rows.stop)
