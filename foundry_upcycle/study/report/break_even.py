"""How much further training it takes until one arm overtakes another."""

from dataclasses import dataclass
from typing import Literal, Optional, Sequence

__all__ = ['BreakEven', 'Lead', 'find_break_even']


@dataclass(frozen=True)
class Lead:
    """How far an arm is ahead at one budget.

    Args:
        budget: FLOPs, or a fraction of pretraining's.
        value: By how much the arm is better; negative where it is worse.
        told_apart: Whether that differs from 0 at 95 %; None where there is no
            interval.
    """

    budget: float
    value: float
    told_apart: Optional[bool]


@dataclass(frozen=True)
class BreakEven:
    """Where an arm overtakes for good.

    Args:
        kind: ``always``: it is ahead at every point. ``never``: it is not at
            the last one. ``crossing``: it falls behind no more.
        budget: Of the crossing; of ``always`` the first point's, of
            ``never`` the last one's.
        told_apart: Whether any of the leads that this rests on (the points on
            both sides of a crossing, or the one of ``budget``) differs from 0
            at 95 %; None where none has an interval.
        earlier: Of ``never``: budgets at which the arm was ahead.
    """

    kind: Literal['always', 'never', 'crossing']
    budget: float
    told_apart: Optional[bool]
    earlier: tuple[float, ...] = ()


def find_break_even(leads: Sequence[Lead]) -> Optional[BreakEven]:
    """Finds the budget at which an arm overtakes for good.

    Between two points the lead is interpolated linearly. That both arms are the
    dense start at budget 0 is no crossing: before the first point, nothing is
    said. A lead of exactly 0 is none.

    Args:
        leads: By ascending budget.

    Returns:
        None where there are no leads.
    """
    if not leads:
        return None
    behind = [index for index, lead in enumerate(leads) if lead.value <= 0]
    if not behind:
        return BreakEven('always', leads[0].budget, leads[0].told_apart)
    last = behind[-1]
    if last == len(leads) - 1:
        ahead = tuple(lead.budget for lead in leads if lead.value > 0)
        final = leads[-1]
        return BreakEven('never', final.budget, final.told_apart, ahead)
    before, after = leads[last], leads[last + 1]
    share = -before.value / (after.value - before.value)
    return BreakEven(
        'crossing',
        before.budget + share * (after.budget - before.budget),
        _any(before.told_apart, after.told_apart),
    )


def _any(*told_apart: Optional[bool]) -> Optional[bool]:
    known = [told for told in told_apart if told is not None]
    return any(known) if known else None
