"""Held-out texts: what they may be, and how they are cut."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.inference.engine.texts import (
    Document,
    beginnings,
    pieces,
    read_texts,
    vocabulary_digest,
)
from benchmarks.inference.errors import HarnessError

VOCAB = {'a': 0, 'b': 1, 'c': 2}


def write_model(folder: Path, vocab: Any, **model: Any) -> Path:
    folder.mkdir(exist_ok=True)
    content = {'model': {'vocab': vocab, **model}, 'added_tokens': []}
    (folder / 'tokenizer.json').write_text(json.dumps(content))
    return folder


def write_texts(folder: Path, *lines: Any) -> Path:
    path = folder / 'texts.jsonl'
    path.write_text(''.join(f'{json.dumps(line)}\n' for line in lines))
    return path


@pytest.mark.parametrize('length', [2, 3, 7, 10, 11])
def test_each_token_but_the_first_is_scored_once(length: int):
    ids = list(range(10))
    cut = pieces(ids, length)
    assert [token for piece, n in cut for token in piece[-n:]] == ids[1:]
    # By the token before it at the least, and by as many as the engine takes.
    assert all(n < len(piece) == min(length, 10) for piece, n in cut)
    assert all(b == a + 1 for piece, _ in cut for a, b in zip(piece, piece[1:]))


def test_documents(tmp_path: Path):
    path = write_texts(
        tmp_path,
        {
            'prompt': [1, 2],
            'bytes': 5,
        },
        {
            'prompt': [0, 1, 2],
            'bytes': 9,
            'vocabulary': vocabulary_digest(write_model(tmp_path, VOCAB)),
        },
    )
    documents = [Document((1, 2), 5), Document((0, 1, 2), 9)]
    assert read_texts(path, tmp_path, 3) == documents
    assert beginnings(documents, 1, 3) == [(0, 1, 2)]
    assert beginnings(documents, 2, 2) == [(1, 2), (0, 1)]
    with pytest.raises(HarnessError, match=r'^quality.greedy.prompts=2: 1 doc'):
        beginnings(documents, 2, 3)


@pytest.mark.parametrize(
    ('lines', 'problem'),
    [
        ([], 'it has no document'),
        ([{
            'prompt': [1]
        }], 'line 1 has 1 token, and so none that follows'),
        ([{
            'prompt': [1, 2]
        }, {
            'prompt': []
        }], 'line 2 has something else than token ids'),
        ([{
            'prompt': [1, 3]
        }], 'line 1 has token 3; the model has 3'),
        ([{
            'text': 'abc'
        }], 'line 1 is no prompt: KeyError'),
        ([{
            'prompt': [1, 2],
            'bytes': 0
        }], 'line 1 has 0 bytes'),
        ([{
            'prompt': [1, 2],
            'bytes': 2
        }, {
            'prompt': [1, 2]
        }], 'only some of its documents have bytes'),
        (
            [{
                'prompt': [1, 2],
                'vocabulary': 'x'
            }],
            'line 1 has tokens of another tokenizer than .* bits a byte',
        ),
    ],
)
def test_texts_that_are_none(tmp_path: Path, lines: list[Any], problem: str):
    path = write_texts(tmp_path, *lines)
    write_model(tmp_path, VOCAB)
    with pytest.raises(HarnessError, match=rf'^quality.texts=.*{problem}'):
        read_texts(path, tmp_path, 3)


def test_texts_that_are_missing(tmp_path: Path):
    with pytest.raises(HarnessError, match="can't be read: FileNotFoundError"):
        read_texts(tmp_path / 'none.jsonl', tmp_path, 3)


def test_a_vocabulary_is_known_by_its_ids(tmp_path: Path):
    """Not by how a version of its library writes it."""
    own = vocabulary_digest(write_model(tmp_path / 'a', VOCAB))
    turned = dict(reversed(VOCAB.items()))
    again = write_model(tmp_path / 'b', turned, merges=['a b'])
    assert vocabulary_digest(again) == own
    unigram = write_model(tmp_path / 'c', [[token, -1.0] for token in VOCAB])
    assert vocabulary_digest(unigram) == own
    other = write_model(tmp_path / 'd', {**VOCAB, 'c': 3})
    assert vocabulary_digest(other) != own
    assert vocabulary_digest(tmp_path) is None


def test_a_tokenizer_that_is_none(tmp_path: Path):
    (tmp_path / 'tokenizer.json').write_text('{}')
    with pytest.raises(HarnessError, match=r"^tokenizer=.*can't be read: Key"):
        vocabulary_digest(tmp_path)
