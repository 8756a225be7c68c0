"""What a reader sees of Markdown, where HTML in it counts as such."""

from html.parser import HTMLParser

from markdown_it import MarkdownIt

__all__ = ['ODD', 'TAGS', 'Rendered']

# A name that is all markup, for CommonMark, GitHub and Matplotlib.
ODD = '![a](b)|<b>x</b> __c__ `d` ~~e~~ &lt; $f$'
# What reports consist of.
TAGS = {
    *('h1', 'h2', 'h3', 'p', 'ul', 'li', 'strong', 'code', 'img'),
    *('table', 'thead', 'tbody', 'tr', 'th', 'td'),
}


class Rendered(HTMLParser):
    """Renders Markdown.

    Attributes:
        text: All that is to be read, of images their names.
        tags: The elements that it became.
    """

    def __init__(self, markdown: str):
        super().__init__()
        self.text = ''
        self.tags = []
        parser = MarkdownIt('commonmark', {'html': True})
        self.feed(parser.enable(['table', 'strikethrough']).render(markdown))

    def handle_starttag(
        self,
        tag: str,
        attrs: list[tuple[str, str | None]],
    ) -> None:
        self.tags.append(tag)
        self.text += str(dict(attrs).get('alt', ''))

    def handle_data(self, data: str) -> None:
        self.text += data
