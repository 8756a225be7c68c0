import sysconfig
from pathlib import Path

import pytest

from foundry_upcycle.data import corpus
from foundry_upcycle.data.corpus import PARTS, SECOND_PHASE, collect

_N_FILES = 60


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A standard library and site-packages of one package a part."""

    def module(topic: str, number: int) -> str:
        text = f'{topic} number {number}, explained at length. ' * 8
        return f'"""{text}"""\n\n\ndef f():\n    """{text} More of it."""\n'

    for folder in ('stdlib', 'general', 'domain'):
        (tmp_path / folder).mkdir()
        for number in range(_N_FILES):
            path = tmp_path / folder / f'm{number}.py'
            path.write_text(module(folder, number))
    monkeypatch.setattr(corpus, '_GENERAL_PACKAGES', ('general', ))
    monkeypatch.setattr(corpus, '_DOMAIN_PACKAGES', ('domain', ))
    paths = {'stdlib': tmp_path / 'stdlib', 'purelib': tmp_path}
    monkeypatch.setattr(sysconfig, 'get_path', lambda name: str(paths[name]))
    return tmp_path


def _collect(max_chars: int = 10**9):
    return collect(dict.fromkeys(PARTS, max_chars))


def test_proportions_are_the_papers():
    assert list(SECOND_PHASE.values()) == [0.15, 0.35, 0.15, 0.35]


def test_same_text_whatever_the_order_of_files(
    installed: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    first = _collect()
    rglob = Path.rglob
    monkeypatch.setattr(
        Path,
        'rglob',
        lambda self, pattern: reversed(list(rglob(self, pattern))),
    )
    assert _collect() == first


def test_no_text_twice_and_held_out_text_apart(installed: Path):
    # A copy of another file, reformatted, must not bring its text back.
    copied = (installed / 'domain' / 'm0.py').read_text()
    copied = copied.replace('explained at', 'explained  at')
    (installed / 'general' / 'copy.py').write_text(copied)
    documents = _collect()
    texts = [
        ' '.join(piece.split())
        for part in documents.values()
        for document in part.train + part.held_out
        for piece in document.split('\n\n')
    ]
    general = [text for text in texts if text.startswith('domain number 0,')]
    assert len(general) == 2  # a module's docstring and a function's
    for part in PARTS:
        train, held_out = documents[part].train, documents[part].held_out
        assert train and held_out
        assert not set(train) & set(held_out)
        assert len(held_out) < len(train)


def test_prose_and_docstrings_share_no_file(installed: Path):
    documents = _collect()
    prose = documents['prose'].train + documents['prose'].held_out
    other = documents['docstrings'].train + documents['docstrings'].held_out
    assert len(prose) + len(other) == _N_FILES
    assert len(other) < len(prose)


def test_stops_at_max_chars(installed: Path):
    few = _collect(max_chars=2_000)
    for part in ('prose', 'domain', 'code'):
        texts = few[part].train + few[part].held_out
        assert 2_000 <= sum(map(len, texts)) < 4_000


def test_unreadable_python_and_short_docstrings_are_left_out(installed: Path):
    before = _collect()
    (installed / 'domain' / 'template.py').write_text('{{ name }} = (')
    (installed / 'domain' / 'short.py').write_text('"""Short."""\n')
    assert _collect() == before


def test_descriptions_of_installed_distributions(installed: Path):
    packages = _collect()['packages']
    assert any('torch' in text for text in packages.train)
