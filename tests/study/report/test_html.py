import base64
import re
from typing import Any

import pytest

from benchmarks.inference.report.html import to_html as to_html_of_serving
from foundry_upcycle.study.report.html import to_html

SVG = b'<svg xmlns="http://www.w3.org/2000/svg"/>'


def test_images_are_inside():
    page = to_html('![a plot](figures/a.png)', 'T', {'figures/a.png': SVG})
    (source, ) = re.findall('src="([^"]*)"', page)
    kind, _, data = source.partition(',')
    assert kind == 'data:image/svg+xml;base64'
    assert base64.b64decode(data) == SVG
    assert 'alt="a plot"' in page


def test_names_with_other_letters():
    page = to_html('![é](figures/é.png)', 'T', {'figures/é.png': SVG})
    assert 'src="data:image/svg+xml;base64,' in page


def test_an_image_that_is_not_there_is_refused():
    with pytest.raises(
            ValueError,
            match=
            "'https://x.org/b.png' is no image of the report: it has a.png",
    ):
        to_html('![b](https://x.org/b.png)', 'T', {'a.png': SVG})
    with pytest.raises(ValueError, match="'b.png' is no image .* it has none"):
        to_html('![b](b.png)', 'T', {})


def test_tables_and_lists():
    page = to_html(
        '- a\n  - b\n\n| x | y |\n| --- | ---: |\n| 1 | 2 |', 'T', {}
    )
    assert '<td>1</td>' in page
    assert '<td style="text-align:right">2</td>' in page
    assert page.count('<ul>') == 2


def test_html_in_names_is_text():
    page = to_html('<script>1</script>', 'a < b', {})
    assert '<script>' not in page
    assert '&lt;script&gt;' in page
    assert '<title>a &lt; b</title>' in page


def test_page_fits_a_narrow_screen_and_both_grounds():
    page = to_html('x', 'T', {})
    assert '<meta name="viewport" content="width=device-width' in page
    assert 'color-scheme: light dark' in page


@pytest.mark.parametrize('render', [to_html, to_html_of_serving])
def test_wide_tables_scroll_on_a_screen_and_wrap_on_paper(render: Any):
    table = '| `<table>` |\n| --- |\n| 1 |'
    page = render(f'{table}\n\n{table}', 'T', {})
    assert page.count('<div class="table" tabindex="0"><table>') == 2
    assert page.count('</table></div>') == page.count('</table>') == 2
    screen, paper = page.split('@media print')
    assert '.table { overflow-x: auto; }' in screen
    # What says so of every page may not keep paper's from wrapping.
    everywhere = re.sub(r'@media screen.*', '', screen)
    assert 'nowrap' not in everywhere + paper
    assert '.table { overflow: visible; }' in paper
