"""Tables of plain text."""

from collections.abc import Iterator, Sequence

__all__ = ['text_table']


def text_table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines with columns as wide as their widest cell.

    Args:
        rows: Of equally many cells; the first is the header.
    """
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths))
        yield '  '.join(cells).rstrip()
