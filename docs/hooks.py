"""Makes the site of the pages as they read in the repository."""

import os
import re
from pathlib import Path
from typing import Any

_LINK = re.compile(r'(!?)\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)')


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """The start page is the README; files beside the pages are no links."""
    docs = Path(config['docs_dir'])
    here = docs / page.file.src_uri
    if page.file.src_uri == 'index.md':
        here = docs.parent / 'README.md'
        markdown = here.read_text()

    def site_link(found: re.Match) -> str:
        mark, text, target, anchor = found.groups()
        if '://' in target:
            return found[0]
        path = Path(os.path.normpath(here.parent / target))
        if not path.exists():
            raise ValueError(f'{here}: there is no {target}')
        if path == docs.parent / 'README.md':
            path = docs / 'index.md'
        if not path.is_relative_to(docs) or path.suffix in ('.json', '.html'):
            return f'{text} (`{path.relative_to(docs.parent)}`)'
        page_folder = (docs / page.file.src_uri).parent
        target = os.path.relpath(path, page_folder)
        return f'{mark}[{text}]({target}{anchor or ""})'

    return _LINK.sub(site_link, markdown)
