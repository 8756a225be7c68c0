"""Held-out text as token ids, and the pieces of it that an engine takes.

A line a document, as tokenize_texts.py writes it::

    {"prompt": [token ids], "bytes": 812, "vocabulary": "3f0c..."}

``bytes`` is what the tokens after the first take as UTF-8 text, and
``vocabulary`` says whose tokens they are; files may lack either.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from benchmarks.inference.engine.token_lines import TokenFile, TokenLine
from benchmarks.inference.errors import HarnessError

__all__ = [
    'Document',
    'beginnings',
    'pieces',
    'read_texts',
    'vocabulary_digest',
]


@dataclass(frozen=True)
class Document:
    """A text of its own.

    Args:
        ids: Its tokens, two at the least.
        n_bytes: Of the text of all tokens but the first, if known.
    """

    ids: tuple[int, ...]
    n_bytes: Optional[int]


def read_texts(path: Path, model: Path, vocab_size: int) -> list[Document]:
    """Reads and checks documents.

    Args:
        path: The file.
        model: The folder of the model that is to read them.
        vocab_size: Of the model.

    Raises:
        HarnessError: It can't be read, has no document, one of less than two
            tokens, bytes of only some, or tokens of another tokenizer.
    """
    file = TokenFile('quality.texts', path, 'tokenize_texts.py')
    own = vocabulary_digest(model)
    documents = []
    for line in file.lines(vocab_size):
        if len(line.ids) < 2:
            raise file.error(
                f'line {line.number} has 1 token, and so none that follows '
                'another.',
                'leave such documents out.',
            )
        other = line.content.get('vocabulary')
        if own is not None and other not in (None, own):
            raise file.error(
                f'line {line.number} has tokens of another tokenizer than '
                f"{model}'s.",
                'write it with the model\'s own, and compare models of '
                'different tokenizers as sizes of their own, by bits a byte.',
            )
        ids = tuple(line.ids.tolist())
        documents.append(Document(ids, _bytes_of(file, line)))
    if not documents:
        raise file.error('it has no document.')
    if len({document.n_bytes is None for document in documents}) > 1:
        raise file.error('only some of its documents have bytes.')
    return documents


def _bytes_of(file: TokenFile, line: TokenLine) -> Optional[int]:
    n_bytes = line.content.get('bytes')
    if n_bytes is None:
        return None
    if not isinstance(n_bytes, int) or n_bytes < 1:
        problem = f'line {line.number} has {n_bytes!r} bytes.'
        raise file.error(problem)
    return n_bytes


def vocabulary_digest(folder: Path) -> Optional[str]:
    """What tells which token each id is; None: there is no tokenizer.json."""
    path = folder / 'tokenizer.json'
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
        ids = content['model']['vocab']
        if isinstance(ids, list):  # Unigram: pairs of a token and its score.
            ids = {token: index for index, (token, _) in enumerate(ids)}
        added = {t['content']: t['id'] for t in content['added_tokens']}
        canonical = json.dumps({**ids, **added}, sort_keys=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise HarnessError(
            'tokenizer',
            str(path),
            f"it can't be read: {error!r}.",
            'export the model again.',
        ) from error
    return hashlib.sha256(canonical.encode()).hexdigest()


def pieces(
    ids: Sequence[int],
    length: int,
) -> list[tuple[tuple[int, ...], int]]:
    """Cuts a document so that each token but its first is scored once.

    A piece begins with the last token of the one before, as its first has none
    before it by which to be scored; the last one begins earlier, to be as long.

    Args:
        ids: Tokens, two at the least.
        length: Of a piece, at the most, and two at the least.

    Returns:
        Pieces, and how many of each's last tokens are scored.
    """
    found, n_scored = [], 1
    while n_scored < len(ids):
        end = min(n_scored - 1 + length, len(ids))
        piece = tuple(ids[max(end - length, 0):end])
        found.append((piece, end - n_scored))
        n_scored = end
    return found


def beginnings(
    documents: Sequence[Document],
    n: int,
    length: int,
) -> list[tuple[int, ...]]:
    """Prompts: of the first documents that are long enough.

    Args:
        documents: Of a file.
        n: How many.
        length: Tokens of each.

    Raises:
        HarnessError: There are fewer.
    """
    found = [d.ids[:length] for d in documents if len(d.ids) >= length]
    if len(found) < n:
        raise HarnessError(
            'quality.greedy.prompts',
            n,
            f'{len(found)} documents of quality.texts have '
            f'greedy.input_tokens={length} tokens.',
            'lower one of the two, or add documents.',
        )
    return found[:n]
