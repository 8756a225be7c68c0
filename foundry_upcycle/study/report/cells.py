"""Cells and tables, as Markdown."""

from typing import Optional, Sequence

from foundry_upcycle.markdown import cells
from foundry_upcycle.study.config import ModelGrid
from foundry_upcycle.study.report.metrics import Mean

__all__ = [
    'NONE',
    'NO_NUMBER',
    'budget_title',
    'markdown_table',
    'mean_cell',
    'value_cell',
]

# Of what does not apply, or was not measured.
NONE = '-'
# Of what there is none of: an interval, or what is relative to nothing.
NO_NUMBER = 'n/a'


def budget_title(model: ModelGrid) -> str:
    """What heads a column of a model's budgets."""
    return 'x' if model.unit == 'fraction' else 'budget'


def value_cell(
    value: float,
    interval: Optional[tuple[float, float]],
    form: str,
    note: str = '',
) -> str:
    """A value and its interval of 95 %.

    Args:
        value: What was measured.
        interval: Of it; n/a where there is none.
        form: A format, such as ``.3f``.
        note: Follows the interval.
    """
    if interval is None:
        return f'{value:{form}} ({NO_NUMBER})'
    low, high = interval
    return f'{value:{form}} ({low:{form}} to {high:{form}}{note})'


def mean_cell(mean: Optional[Mean], form: str = '.3f') -> str:
    """A mean and its interval, which is marked where it is over examples."""
    if mean is None:
        return NONE
    note = '; examples' if mean.over == 'examples' else ''
    return value_cell(mean.value, mean.interval, form, note)


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
    lines = [cells(row) for row in (head, *rows)]
    lines.insert(1, rule)
    return '\n'.join(f"| {' | '.join(line)} |" for line in lines)
