"""Real text that every installation of LLM Foundry already has on disk.

Five parts, after the data of the sparse upcycling paper. The dense phase reads
``prose``; the second phase a mix of the other four, in the paper's proportions
(large-scale web, code, small-scale web, domain = 15, 35, 15, 35 %):

- ``prose``: docstrings of general-purpose packages.
- ``docstrings``: the same packages, other files: more of what is known already.
- ``code``: the Python standard library, docstrings and all.
- ``packages``: what every installed distribution says about itself (README).
- ``domain``: docstrings of the packages for mathematics and statistics. They
  are a domain in the paper's sense: a field with its own vocabulary, formulas
  and worked examples, large enough to learn, and in no other part.

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
from pathlib import Path
from typing import Iterator, Mapping

__all__ = [
    'DOMAIN_PART',
    'PARTS',
    'PRETRAINING_PART',
    'SECOND_PHASE',
    'Documents',
    'collect',
]

PRETRAINING_PART = 'prose'
DOMAIN_PART = 'domain'

# Part of the second phase -> its proportion (paper, section 2).
SECOND_PHASE = {
    'docstrings': 0.15,
    'code': 0.35,
    'packages': 0.15,
    DOMAIN_PART: 0.35,
}
PARTS = (PRETRAINING_PART, *SECOND_PHASE)

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
    'setuptools',
    'sqlalchemy',
    'streaming',
    'torch',
    'torchmetrics',
    'torchvision',
    'wandb',
)
_DOMAIN_PACKAGES = ('mpmath', 'networkx', 'numpy', 'scipy', 'sklearn', 'sympy')

# Below this a docstring is a label, not a text.
_MIN_CHARS = 200
# One document in this many is held out of training.
_HELD_OUT_EVERY = 6
# One file in this many goes to `docstrings` instead of `prose`.
_DOCSTRINGS_EVERY = 4
# Tests repeat themselves; `encodings` and `pydoc_data` are tables.
_SKIPPED_FOLDERS = {'encodings', 'pydoc_data', 'site-packages', 'test', 'tests'}


@dataclass
class Documents:
    """The documents of one part.

    Args:
        train: Documents to train on.
        held_out: Documents no model ever trains on.
    """

    train: list[str] = field(default_factory=list)
    held_out: list[str] = field(default_factory=list)


def collect(max_chars: Mapping[str, int]) -> dict[str, Documents]:
    """Collects all parts.

    A document is a source file, the docstrings of a source file, or a
    description. No text occurs twice: docstrings, files and descriptions are
    compared by content, whitespace aside. Order and split follow hashes of
    names and contents, never the order in which a disk lists its files.

    Args:
        max_chars: Part, one of ``PARTS`` -> characters it takes before it
            stops reading.

    Returns:
        The documents of each part.
    """
    seen: set[str] = set()
    return {part: _split(_read(part), max_chars[part], seen) for part in PARTS}


def _read(part: str) -> Iterator[list[str]]:
    """Yields each document of a part as the pieces it is made of."""
    if part == 'packages':
        yield from _descriptions()
        return
    if part == 'code':
        root = Path(sysconfig.get_path('stdlib'))
        for path in _source_files(root, ('', )):
            yield [path.read_text(encoding='utf-8', errors='replace')]
        return
    packages = _DOMAIN_PACKAGES if part == DOMAIN_PART else _GENERAL_PACKAGES
    root = Path(sysconfig.get_path('purelib'))
    for path in _source_files(root, packages):
        in_docstrings = _bucket(_name(path, root), _DOCSTRINGS_EVERY) == 0
        if part == DOMAIN_PART or in_docstrings == (part == 'docstrings'):
            yield _docstrings(path)


def _split(
    documents: Iterator[list[str]],
    max_chars: int,
    seen: set[str],
) -> Documents:
    result = Documents()
    n_chars = 0
    for pieces in documents:
        new = [p for p in pieces if len(p) >= _MIN_CHARS and _is_new(p, seen)]
        if not new:
            continue
        text = '\n\n'.join(new)
        held_out = _bucket(text, _HELD_OUT_EVERY) == 0
        (result.held_out if held_out else result.train).append(text)
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


def _source_files(root: Path, packages: tuple[str, ...]) -> list[Path]:
    """Python files below the packages, in an order fixed by their names."""
    paths = [
        path for package in packages for path in (root / package).rglob('*.py')
        if _SKIPPED_FOLDERS.isdisjoint(path.relative_to(root).parts)
    ]
    return sorted(paths, key=lambda path: _digest(_name(path, root)))


def _docstrings(path: Path) -> list[str]:
    source = path.read_text(encoding='utf-8', errors='replace')
    with warnings.catch_warnings():
        # Invalid escape sequences in other people's files.
        warnings.simplefilter('ignore')
        try:
            tree = ast.parse(source)
        except SyntaxError:
            # Templates and files for other versions of Python.
            return []
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = (node for node in ast.walk(tree) if isinstance(node, kinds))
    return [text for text in map(ast.get_docstring, nodes) if text]


def _descriptions() -> Iterator[list[str]]:
    by_name = {}
    for distribution in importlib.metadata.distributions():
        # Not `.metadata`: its form depends on whether the package
        # importlib_metadata has been imported.
        metadata = message_from_string(distribution.read_text('METADATA') or '')
        by_name[metadata['Name'] or ''] = str(metadata.get_payload()).strip()
    for name in sorted(by_name, key=_digest):
        yield [by_name[name]]


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()


def _bucket(text: str, n_buckets: int) -> int:
    return int(_digest(text)[:8], 16) % n_buckets
