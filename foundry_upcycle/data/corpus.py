"""Real text that every installation of LLM Foundry already has on disk.

The dense phase reads ``python``. The second phase reads a mix of the other
three: half of it a domain that the dense model does not know, the rest what a
practitioner adds so that little is forgotten.

- ``python``: source files of general-purpose packages and of the standard
  library, docstrings and all.
- ``headers``: the C, C++ and CUDA headers that packages bring, torch's first of
  all. They are a domain in the sense of the sparse upcycling paper: another
  language with its own vocabulary, and in no other part.
- ``documentation``: docstrings of the packages for mathematics and statistics,
  and what every installed distribution says about itself (README).
- ``more_python``: other files of the packages of ``python``: more of what is
  known already.

All packages named are requirements of LLM Foundry, directly or through torch
and MLflow, so nothing is downloaded; the exact text follows their versions.
"""

import ast
import hashlib
import importlib.metadata
import sysconfig
import warnings
from dataclasses import dataclass, field
from email import message_from_string
from itertools import chain
from pathlib import Path
from typing import Callable, Iterator, Mapping, Sequence

__all__ = [
    'PARTS',
    'PRETRAINING_PART',
    'SECOND_PHASE',
    'Documents',
    'collect',
    'is_held_out',
]

PRETRAINING_PART = 'python'

# Part of the second phase -> its proportion.
SECOND_PHASE = {
    'headers': 0.5,
    'documentation': 0.25,
    'more_python': 0.25,
}
PARTS = (PRETRAINING_PART, *SECOND_PHASE)

# Not transformers, whose models are copies of each other.
_GENERAL_PACKAGES = (
    'aiohttp',
    'botocore',
    'composer',
    'datasets',
    'fontTools',
    'huggingface_hub',
    'llmfoundry',
    'matplotlib',
    'mlflow',
    'pandas',
    'pip',
    'pygments',
    'setuptools',
    'sqlalchemy',
    'streaming',
    'torch',
    'torchmetrics',
    'torchvision',
    'triton',
    'wandb',
)
_MATHEMATICS = ('mpmath', 'networkx', 'numpy', 'scipy', 'sklearn', 'sympy')
_PYTHON, _HEADERS = {'.py'}, {'.h', '.hpp', '.cuh'}

# Below this a text is a label.
_MIN_CHARS = 200
# One document in this many is held out of training.
_HELD_OUT_EVERY = 6
# One file in this many goes to `more_python` instead of `python`.
_MORE_EVERY = 4
# Tests repeat themselves; `encodings` and `pydoc_data` are tables.
_SKIPPED_FOLDERS = {'encodings', 'pydoc_data', 'site-packages', 'test', 'tests'}
# Thousands of torch's headers differ by a name.
_GENERATED = '@generated'


@dataclass
class Documents:
    """The documents of one part.

    Args:
        train: Documents to train on.
        held_out: Documents no model ever trains on.
    """

    train: list[str] = field(default_factory=list)
    held_out: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Source:
    """A document that is not read yet, and a name to sort it by."""

    name: str
    pieces: Callable[[], list[str]]


def collect(max_chars: Mapping[str, int]) -> dict[str, Documents]:
    """Collects parts.

    A document is a source file, the docstrings of a source file, or a
    description. No text occurs twice: docstrings, files and descriptions are
    compared by content, whitespace aside. Order and split follow hashes of
    names and contents, never the order in which a disk lists its files.

    Args:
        max_chars: Part, one of ``PARTS`` -> characters it takes before it
            stops reading. Others are left out.

    Returns:
        The documents of each of these parts.
    """
    seen: set[str] = set()
    return {
        part: _split(_sources(part), max_chars[part], seen)
        for part in PARTS
        if part in max_chars
    }


def _sources(part: str) -> list[_Source]:
    """Of a part, in an order fixed by their names."""
    root = Path(sysconfig.get_path('purelib'))
    if part == 'headers':
        found = _files(root, ('', ), _HEADERS, _whole)
    elif part == 'documentation':
        documented = _files(root, _MATHEMATICS, _PYTHON, _docstrings)
        found = chain(documented, _descriptions())
    else:
        standard = Path(sysconfig.get_path('stdlib'))
        found = (
            source for source in chain(
                _files(root, _GENERAL_PACKAGES, _PYTHON, _whole),
                _files(standard, ('', ), _PYTHON, _whole),
            ) if (_bucket(source.name, _MORE_EVERY) == 0
                 ) == (part == 'more_python')
        )
    return sorted(found, key=lambda source: _digest(source.name))


def _files(
    root: Path,
    folders: Sequence[str],
    endings: set[str],
    read: Callable[[Path], list[str]],
) -> Iterator[_Source]:
    for folder in folders:
        for path in (root / folder).rglob('*.*'):
            name = path.relative_to(root)
            is_skipped = not _SKIPPED_FOLDERS.isdisjoint(name.parts)
            if path.suffix in endings and not is_skipped:
                # Bound now: the loop goes on before it is read.
                yield _Source(name.as_posix(), lambda path=path: read(path))


def _whole(path: Path) -> list[str]:
    text = _text(path)
    return [] if _GENERATED in text[:200] else [text]


def _docstrings(path: Path) -> list[str]:
    with warnings.catch_warnings():
        # Invalid escape sequences in other people's files.
        warnings.simplefilter('ignore')
        try:
            tree = ast.parse(_text(path))
        except SyntaxError:
            # Templates and files for other versions of Python.
            return []
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = (node for node in ast.walk(tree) if isinstance(node, kinds))
    return [text for text in map(ast.get_docstring, nodes) if text]


def _text(path: Path) -> str:
    return path.read_text(encoding='utf-8', errors='replace')


def _descriptions() -> Iterator[_Source]:
    by_name = {}
    for distribution in importlib.metadata.distributions():
        # Not `.metadata`: its form depends on whether the package
        # importlib_metadata has been imported.
        metadata = message_from_string(distribution.read_text('METADATA') or '')
        by_name[metadata['Name'] or ''] = str(metadata.get_payload()).strip()
    for name, text in by_name.items():
        yield _Source(name, lambda text=text: [text])


def _split(
    sources: Sequence[_Source],
    max_chars: int,
    seen: set[str],
) -> Documents:
    result = Documents()
    n_chars = 0
    for source in sources:
        new = [
            piece for piece in source.pieces()
            if len(piece) >= _MIN_CHARS and _is_new(piece, seen)
        ]
        if not new:
            continue
        text = '\n\n'.join(new)
        (result.held_out if is_held_out(text) else result.train).append(text)
        n_chars += len(text)
        if n_chars >= max_chars:
            break
    return result


def _is_new(text: str, seen: set[str]) -> bool:
    digest = _digest(' '.join(text.split()))
    if digest in seen:
        return False
    seen.add(digest)
    return True


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()


def is_held_out(text: str) -> bool:
    """Whether a document is held out of training, by what tells it apart."""
    return _bucket(text, _HELD_OUT_EVERY) == 0


def _bucket(text: str, n_buckets: int) -> int:
    return int(_digest(text)[:8], 16) % n_buckets
