"""How evenly a mixture's tokens were spread over its experts."""

from typing import Optional

import numpy as np

from benchmarks.inference.report.records import Arm
from benchmarks.inference.report.summary import Summary

__all__ = ['expert_load']


def expert_load(
    summary: Summary,
    size: str,
    arm: Arm,
) -> Optional[np.ndarray]:
    """Each expert's share of a layer's visits, times the number of experts.

    Returns:
        Mean over the points that recorded it, of shape (layers, experts); None
        where none did.
    """
    shares = [
        point.shares
        for point in summary.of_size(size)
        if point.arm == arm and point.shares is not None
    ]
    if not shares:
        return None
    return np.mean(shares, axis=0) * arm.experts
