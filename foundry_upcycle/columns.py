"""Tables as lines of text."""

from typing import Iterator, Sequence

__all__ = ['in_columns']


def in_columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines with the first cell of a row to the left, the others to the right.

    Args:
        rows: All of the same number of cells.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = [first.ljust(widths[0])]
        cells += [n.rjust(w) for n, w in zip(others, widths[1:], strict=True)]
        yield '  '.join(cells).rstrip()
