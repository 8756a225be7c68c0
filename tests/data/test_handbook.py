"""The handbook is read page by page, from a package's file."""

import subprocess
from pathlib import Path

import pytest

from foundry_upcycle.data.handbook import read_handbook
from foundry_upcycle.errors import CheckpointError

PAGE = '''<html><head><title>T</title></head><body><div id="banner">get it</div>
<p id="title">Product Site</p><ul class="docnav top"><li>Next</li></ul>
<div class="para">
			Text   of <code>{name}</code>,
			in {language}.
		</div><pre>$ apt  update</pre></body></html>'''
CONTROL = '''Package: debian-handbook
Version: 1
Architecture: all
Maintainer: nobody <nobody@localhost>
Description: a few pages
'''


@pytest.fixture(scope='module')
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp('package')
    (root / 'tree/DEBIAN').mkdir(parents=True)
    (root / 'tree/DEBIAN/control').write_text(CONTROL)
    for language in ('en-US', 'nb-NO'):
        pages = root / f'tree/usr/share/doc/debian-handbook/html/{language}'
        (pages / 'Common_Content').mkdir(parents=True)
        (pages / 'Common_Content/page.html').write_text('no page')
        for i in range(30):
            text = PAGE.format(name=i, language=language)
            (pages / f'p{i:02}.html').write_text(text)
    built = root / 'handbook.deb'
    command = ['dpkg-deb', '--build', str(root / 'tree'), str(built)]
    subprocess.run(command, check=True, capture_output=True)
    return built


def test_pages(package: Path):
    pages = read_handbook(['nb-NO'], package)['nb-NO']
    assert sorted(pages.train + pages.held_out) == sorted(
        f'Text of {i},\nin nb-NO.\n$ apt update' for i in range(30)
    )


def test_a_page_is_held_out_in_all_languages(package: Path):
    found = read_handbook(['nb-NO', 'en-US'], package)
    norwegian, english = found['nb-NO'], found['en-US']
    assert 1 <= len(norwegian.held_out) <= 15
    for some, others in (
        (norwegian.train, english.train),
        (norwegian.held_out, english.held_out),
    ):
        assert [text.replace('nb-NO', 'en-US') for text in some] == others


def test_a_language_that_it_does_not_have(package: Path):
    with pytest.raises(CheckpointError, match='no pages in xx-XX'):
        read_handbook(['nb-NO', 'xx-XX'], package)


def test_a_file_that_is_no_package(tmp_path: Path):
    (tmp_path / 'a.deb').write_bytes(b'no package')
    with pytest.raises(CheckpointError, match='a.deb: dpkg-deb could not'):
        read_handbook(['nb-NO'], tmp_path / 'a.deb')


def test_a_machine_without_the_tools(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv('PATH', '/nowhere')
    with pytest.raises(CheckpointError, match='apt-get could not.*--handbook'):
        read_handbook(['nb-NO'])
