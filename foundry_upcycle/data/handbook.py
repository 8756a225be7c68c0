"""The Debian Administrator's Handbook: one text in many languages.

A small pretrained model reads its English and knows little of the other
languages, so that one of them is a domain to learn, and the same pages in
English show what is forgotten. The Debian package debian-handbook ships it
(GPL-2+ or CC-BY-SA-3.0); any machine with its file can read it.
"""

import io
import re
import subprocess
import tarfile
from pathlib import Path, PurePosixPath
from typing import Collection, Iterator, Mapping, Optional

from foundry_upcycle.data.corpus import Documents, is_held_out
from foundry_upcycle.errors import CheckpointError
from foundry_upcycle.files import scratch_folder

__all__ = ['read_handbook']

_PACKAGE = 'debian-handbook'
_PAGES = PurePosixPath('./usr/share/doc/debian-handbook/html')


def read_handbook(
    languages: Collection[str],
    package: Optional[Path] = None,
) -> Mapping[str, Documents]:
    """Reads the handbook in some languages; a document is a page.

    Args:
        languages: As its folders are called: ``en-US``, ``nb-NO``, ...
        package: The package's file. None: apt-get downloads it.

    Returns:
        Of each language the pages, in order of their names. A page is held out
        in all of them or in none.

    Raises:
        CheckpointError: apt-get could not download it, dpkg-deb not read it, or
            it has no such language.
    """
    with scratch_folder('handbook-') as folder:
        content = _unpacked(package or _download(folder))
    found = {language: Documents() for language in languages}
    for language, page, text in _pages(content, languages):
        of = found[language]
        (of.held_out if is_held_out(page) else of.train).append(text)
    for language, documents in found.items():
        if not documents.train:
            raise CheckpointError(
                package or _PACKAGE,
                f'it has no pages in {language}.',
                f'name a file of the Debian package {_PACKAGE}.',
            )
    return found


def _pages(
    content: bytes,
    languages: Collection[str],
) -> Iterator[tuple[str, str, str]]:
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        members = sorted(archive.getmembers(), key=lambda member: member.name)
        for member in members:
            path = PurePosixPath(member.name)
            language = path.parent.name
            if (path.parent.parent == _PAGES and path.suffix == '.html'
                    and language in languages):
                file = archive.extractfile(member)
                assert file is not None  # It is not a link.
                yield language, path.name, _text(file.read())


def _text(page: bytes) -> str:
    """What a page says, without its frame."""
    # A requirement of LLM Foundry.
    from bs4 import BeautifulSoup

    soup = BeautifulSoup(page, 'html.parser')
    for frame in soup.select('head, #banner, #title, ul.docnav'):
        frame.decompose()
    # Lines as they stand in examples, else as one reads them.
    lines = (re.sub(r'[ \t]+', ' ', line) for line in soup.text.splitlines())
    return re.sub(r'\n{2,}', '\n\n', '\n'.join(map(str.strip, lines))).strip()


def _download(folder: Path) -> Path:
    _run(['apt-get', 'download', _PACKAGE], folder)
    return next(folder.glob('*.deb'))


def _unpacked(package: Path) -> bytes:
    return _run(['dpkg-deb', '--fsys-tarfile', str(package.absolute())])


def _run(command: list[str], folder: Optional[Path] = None) -> bytes:
    try:
        result = subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, 'stderr', b'') or str(error).encode()
        lines = said.decode(errors='replace').strip().splitlines()
        raise CheckpointError(
            command[-1],
            f'{command[0]} could not get or read it ({lines[-1]}).',
            f'get the Debian package {_PACKAGE} on a machine that can, and '
            'name its file with --handbook; dpkg-deb, of the package dpkg, '
            'reads it.',
        ) from error
    return result.stdout
