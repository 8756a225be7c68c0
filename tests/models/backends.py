"""Backends of the layer, of which this torch may lack one."""

import pytest

from foundry_upcycle.models.experts import BACKENDS
from foundry_upcycle.models.grouped import GROUPED_MM

__all__ = ['ALL', 'FAST', 'needs_grouped_mm']

needs_grouped_mm = pytest.mark.skipif(
    GROUPED_MM is None,
    reason='this torch has no grouped products',
)
ALL = [
    pytest.param(
        name,
        marks=needs_grouped_mm if name == 'grouped_mm' else (),
    ) for name in BACKENDS
]
# What is tested against the definition.
FAST = [each for each in ALL if each.values != ('loop', )]
