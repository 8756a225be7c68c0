"""Which rates to measure: a coarse search for the knee, then a fine grid.

The knee is where the server begins to fall behind: between the highest rate
that it keeps up with and the next of the grid.
"""

from typing import Callable, Mapping, Optional

from benchmarks.inference.study.settings import Rates

__all__ = ['knee', 'number_of_rates', 'replay', 'search']


class _NotMeasured(Exception):
    """The search needs a rate that was not measured."""


def search(
    rates: Rates,
    is_saturated: Callable[[float], bool],
) -> tuple[float, ...]:
    """Rates in the order of measuring: coarse ones, then the fine grid.

    The first is ``start``. Then the distance to it doubles (1, 2, 4, ... steps)
    until a rate saturates or ``stop`` is reached, and the gap between the
    highest rate below and the lowest above is halved until they are
    neighbours. Last come ``fine`` rates on each side of the gap.

    Assumes that all rates above a saturated one saturate too.

    Args:
        rates: The grid.
        is_saturated: Measures a rate.
    """
    grid = rates.grid
    asked: list[float] = []

    def saturates(index: int) -> bool:
        asked.append(grid[index])
        return is_saturated(grid[index])

    below, above = _coarse(len(grid), saturates)
    first = max(above - rates.fine, 0)
    for index in range(first, min(below + 1 + rates.fine, len(grid))):
        if grid[index] not in asked:
            saturates(index)
    return tuple(asked)


def _coarse(n: int, saturates: Callable[[int], bool]) -> tuple[int, int]:
    """Neighbours: the last that keeps up (or -1), the first that doesn't."""
    below, above = -1, n
    probe = 0
    while below < n - 1 and above == n:
        if saturates(probe):
            above = probe
        else:
            below, probe = probe, min(max(1, 2 * probe), n - 1)
    while above - below > 1:
        middle = (below + above) // 2
        if saturates(middle):
            above = middle
        else:
            below = middle
    return below, above


def replay(
    rates: Rates,
    measured: Mapping[float, bool],
) -> tuple[tuple[float, ...], bool]:
    """What is known of a search from what was measured so far.

    Args:
        rates: The grid.
        measured: Rate -> whether it was saturated.

    Returns:
        The search's rates in its order, with the one to measure next at the end
        unless the search is complete; and whether it is.
    """
    asked = []

    def answer(rate: float) -> bool:
        asked.append(rate)
        if rate not in measured:
            raise _NotMeasured
        return measured[rate]

    try:
        search(rates, answer)
    except _NotMeasured:
        return tuple(asked), False
    return tuple(asked), True


def knee(
    rates: Rates,
    measured: Mapping[float, bool],
) -> tuple[Optional[float], Optional[float]]:
    """Highest rate that keeps up, lowest of those above that doesn't.

    Each is None where it was not measured.
    """
    saturated = [rate for rate, is_it in measured.items() if is_it]
    above = min(saturated, default=None)
    kept_up = [
        rate for rate, is_it in measured.items()
        if not is_it and (above is None or rate < above)
    ]
    return max(kept_up, default=None), above


def number_of_rates(rates: Rates) -> tuple[int, int]:
    """How many rates a search takes, at the least and at the most.

    Tries every place of the knee.
    """
    grid = rates.grid
    limits = (0.0, *grid)
    numbers = [
        len(search(rates, lambda rate, limit=limit: rate > limit))
        for limit in limits
    ]
    return min(numbers), max(numbers)
