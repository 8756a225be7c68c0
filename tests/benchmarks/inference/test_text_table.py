"""Columns of text."""

from benchmarks.inference.text_table import text_table


def test_columns_are_as_wide_as_their_widest_cell():
    rows = [('a', 'bb', 'c'), ('long', '', 'c'), ('x', 'y', '')]
    assert list(text_table(rows)) == [
        'a     bb  c',
        'long      c',
        'x     y',
    ]
