"""From which budget on one arm is ahead."""

import math
from dataclasses import dataclass
from typing import Literal, Optional

import numpy as np

__all__ = ['Crossing', 'find_crossing']


@dataclass(frozen=True)
class Crossing:
    """Where upcycling overtakes for good.

    Args:
        kind: ``always``: it is ahead of all budgets that were looked at.
            ``never``: it is not at the largest. ``crossing``: it falls behind
            no more.
        fraction: Of the crossing; None where there is none.
        possible_from: From where on its being ahead is within the interval of
            95 %; None: nowhere.
        told_apart: Smallest and largest fraction at which its being ahead is
            told apart from none; None: nowhere.
        searched: Smallest and largest fraction that was looked at.
    """

    kind: Literal['always', 'never', 'crossing']
    fraction: Optional[float]
    possible_from: Optional[float]
    told_apart: Optional[tuple[float, float]]
    searched: tuple[float, float]


def find_crossing(
    fractions: np.ndarray,
    lead: np.ndarray,
    half_width: np.ndarray,
) -> Crossing:
    """Finds where a lead becomes positive for good.

    Args:
        fractions: Ascending, close together.
        lead: At each.
        half_width: Of the lead's interval.
    """
    ahead = fractions[lead - half_width > 0]
    possible = fractions[lead + half_width > 0]
    fraction = None
    if lead[-1] <= 0:
        kind = 'never'
    elif (lead > 0).all():
        kind = 'always'
    else:
        kind = 'crossing'
        last = int(np.nonzero(lead <= 0)[0][-1])
        # Linear in the logarithm, of which laws nearly are.
        share = lead[last] / (lead[last] - lead[last + 1])
        logs = np.log(fractions[last:last + 2])
        fraction = math.exp(logs[0] + share * (logs[1] - logs[0]))
    return Crossing(
        kind,
        fraction,
        float(possible[0]) if len(possible) else None,
        (float(ahead[0]), float(ahead[-1])) if len(ahead) else None,
        (float(fractions[0]), float(fractions[-1])),
    )
