import base64
import re

import pytest

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
    assert 'overflow-x: auto' in page
