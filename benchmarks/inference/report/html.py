"""Markdown as one HTML file that opens offline."""

import base64
import html
from typing import Mapping, Sequence
from urllib.parse import unquote

from markdown_it import MarkdownIt
from markdown_it.token import Token

__all__ = ['to_html']

_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
{body}</body>
</html>
"""
# Colours are the browser's own, so that light and dark both read well; figures
# keep their white ground. Cells of wide tables wrap, and tables that are wider
# even so scroll, as all that are wide do on a phone. Paper can't scroll: there
# pages lie across, in smaller letters.
_STYLE = """\
:root { color-scheme: light dark; }
body { max-width: 75rem; margin: 0 auto; padding: 1rem;
  font: 1rem/1.5 system-ui, sans-serif; background: Canvas; color: CanvasText;
  overflow-wrap: break-word; }
p, ul { max-width: 60rem; }
h1, h2, h3 { line-height: 1.25; margin: 2rem 0 0.75rem; }
h1 { margin-top: 0.5rem; }
img { display: block; max-width: min(100%, 60rem); height: auto;
  background: white; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.875rem; line-height: 1.35;
  font-variant-numeric: tabular-nums; }
th, td { padding: 0.2rem 0.5rem; border-bottom: 1px solid #8886;
  vertical-align: top; overflow-wrap: normal; }
code { font-size: 0.9em; overflow-wrap: anywhere; }
@media screen and (max-width: 50rem) { th, td { white-space: nowrap; } }
@page { size: A4 landscape; margin: 12mm; }
@media print {
  :root { color-scheme: light; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  .table { overflow: visible; }
  table { font-size: 7pt; }
  th, td { padding: 0.15rem 0.25rem; overflow-wrap: anywhere; }
  img { max-height: 160mm; width: auto; }
  tr, img { break-inside: avoid; }
  h1, h2, h3, p:has(+ .table) { break-after: avoid; }
}
"""


def to_html(markdown: str, title: str, images: Mapping[str, bytes]) -> str:
    """Renders Markdown with everything that it shows inside.

    Args:
        markdown: CommonMark with tables. HTML in it is shown as text.
        title: Of the page.
        images: What the Markdown names as an image -> the image, as SVG.

    Raises:
        ValueError: The Markdown shows an image that is not among them.
    """
    parser = MarkdownIt('commonmark', {'html': False}).enable('table')
    tokens = parser.parse(markdown)
    _inline(tokens, images)
    body = parser.renderer.render(tokens, parser.options, {})
    body = body.replace('<table>', '<div class="table" tabindex="0"><table>')
    body = body.replace('</table>', '</table></div>')
    return _PAGE.format(title=html.escape(title), style=_STYLE, body=body)


def _inline(tokens: Sequence[Token], images: Mapping[str, bytes]) -> None:
    for token in tokens:
        if token.type == 'image':
            name = unquote(str(token.attrs['src']))
            if name not in images:
                raise ValueError(
                    f'{name!r} is no image of the report, which has '
                    f"{', '.join(images) or 'none'}.",
                )
            data = base64.b64encode(images[name]).decode()
            token.attrs['src'] = f'data:image/svg+xml;base64,{data}'
        _inline(token.children or (), images)
