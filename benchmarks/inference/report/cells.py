"""Cells and tables, as Markdown."""

from typing import Any, Optional, Sequence

from benchmarks.inference.report.estimates import Estimate
from benchmarks.inference.report.markdown import cells

__all__ = [
    'NONE',
    'cell',
    'end_of',
    'markdown_table',
    'per_cent',
    'rate_name',
    'span',
]

# Of what does not apply, or was not measured.
NONE = '-'
# Of a text from outside, such as the end of a log.
_LONGEST = 300


def cell(estimate: Optional[Estimate], form: str) -> str:
    """A value and its interval of 95 %, or n/a where it has none.

    Args:
        estimate: What was measured, if it was.
        form: A format, such as ``.3f``.
    """
    if estimate is None:
        return NONE
    if estimate.interval is None:
        return f'{estimate.value:{form}} (n/a)'
    low, high = estimate.interval
    return f'{estimate.value:{form}} ({low:{form}} to {high:{form}})'


def per_cent(value: float, digits: int = 0) -> str:
    """A share as a percentage."""
    return f'{value:.{digits}%}'


def rate_name(rate: Optional[float]) -> str:
    """Of a rate in requests a second; None is unbounded."""
    return 'unbounded' if rate is None else f'{rate:g}'


def span(values: Sequence[float], form: str) -> str:
    """One value, or the least and the most where they differ."""
    if not values:
        return NONE
    ends = dict.fromkeys(f'{end:{form}}' for end in (min(values), max(values)))
    return ' to '.join(ends)


def end_of(text: Any) -> str:
    """Text from outside on one line: of a log, the end says what went wrong."""
    line = ' '.join(str(text).split())
    return line if len(line) <= _LONGEST else f'... {line[-_LONGEST:]}'


def markdown_table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    n_left: int = 1,
) -> str:
    """A table.

    Args:
        head: Titles of the columns.
        rows: The cells, as many as there are titles. What is no ``Markup``
            is text.
        n_left: How many columns are aligned to the left; others are to the
            right.
    """
    rule = ['---'] * n_left + ['---:'] * (len(head) - n_left)
    lines = [cells(head), rule, *map(cells, rows)]
    return '\n'.join(f"| {' | '.join(line)} |" for line in lines)
