"""Markdown in which names from outside stay what they are: text.

Names of sizes, labels and what an engine says are free, and may read as markup:
``![a](b)``, ``a|b``, ``<b>``. The same as ``foundry_upcycle/markdown.py``, of which
the harness imports nothing.
"""

import re
from typing import Any, Iterable

__all__ = ['Markup', 'cells', 'code', 'plain']

# What is markup within a line, by CommonMark or GitHub; an underscore only at
# the end of a word.
_INLINE = re.compile(r'[\\`*\[\]<>~#&$]|(?<![^\W_])_|_(?![^\W_])')
# What makes a list, or a title of the line above, of what it stands before.
_LEADING = re.compile(r'^(\d*)([-+=.)])')


class Markup(str):
    """Markdown that is meant as such."""


def plain(text: Any) -> Markup:
    """Text on one line, without meaning to Markdown."""
    return Markup(_LEADING.sub(r'\1\\\2', _inline(text)))


def code(text: Any) -> Markup:
    """Text as it is, on one line."""
    line = ' '.join(str(text).split())
    # A fence that the text has not.
    fence = '`' * (1 + max(map(len, re.findall('`+', line)), default=0))
    room = ' ' if '`' in line[:1] + line[-1:] else ''
    return Markup(f'{fence}{room}{line}{room}{fence}')


def cells(texts: Iterable[Any]) -> list[str]:
    """Of a row of a table: what is no ``Markup`` is text."""
    return [(text if isinstance(text, Markup) else
             _inline(text)).replace('|', r'\|') for text in texts]


def _inline(text: Any) -> str:
    return _INLINE.sub(r'\\\g<0>', ' '.join(str(text).split()))
