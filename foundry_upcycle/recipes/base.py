"""What a recipe is, and where its randomness comes from.

Shape suffixes: F expert hidden, D d_model, R rows of one shard.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:  # Which recipes there are is asked where no torch is needed.
    import torch

__all__ = ['DenseRows', 'ExpertRows', 'Recipe', 'seeded_generator']


class ExpertRows(NamedTuple):
    """Which rows of which expert are wanted.

    Attributes:
        layer: Block index.
        expert: Expert index.
        weight: ``w1``, ``v1`` or ``w2``.
        start: First row within the expert, 0 to F.
        stop: One past the last row.
    """
    layer: int
    expert: int
    weight: str
    start: int
    stop: int


class DenseRows(Protocol):
    """Reads rows of the dense weight the experts come from.

    The weight is (F, D) for all three: the down projection comes transposed,
    as experts store it.
    """

    def __call__(self, start: int, stop: int) -> torch.Tensor:
        ...


class Recipe(Protocol):
    """Gives rows of one expert's weight, (R, D).

    The result may depend on nothing but the arguments: not on the rank, the
    sharding or the order of calls. Draw from ``seeded_generator(seed, ...)``
    over a whole expert and slice.
    """

    def __call__(self, dense_rows: DenseRows, rows: ExpertRows) -> torch.Tensor:
        ...


def seeded_generator(seed: int, *labels: object) -> torch.Generator:
    """A CPU generator whose stream depends on the seed and labels alone."""
    import torch
    digest = hashlib.sha256(repr((seed, *labels)).encode()).digest()
    generator = torch.Generator()
    generator.manual_seed(int.from_bytes(digest[:8], 'little', signed=True))
    return generator
