"""The command that turns held-out texts into token ids."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from benchmarks.inference.engine.texts import Document, read_texts
from benchmarks.inference.tokenize_texts import main


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tokenizer of a byte a token, that would cut texts to 4 tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: index for index, letter in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.enable_truncation(4)
    tokenizer.save(str(tmp_path / 'tokenizer.json'))
    return tmp_path


def test_documents_and_their_bytes(folder: Path):
    (folder / 'a.txt').write_text('an essay')
    (folder / 'b.jsonl').write_text('{"text": "two"}\n{"text": "a"}\n')
    out = folder / 'out.jsonl'
    texts = [str(folder / 'a.txt'), str(folder / 'b.jsonl')]
    main([str(folder), str(out), *texts])
    documents = read_texts(out, folder, 256)
    # Without the first token: a byte here. One of a token is left out.
    assert [len(d.ids) for d in documents] == [8, 3]
    assert [d.n_bytes for d in documents] == [7, 2]
    main([str(folder), str(out), *texts, '--documents', '1'])
    assert read_texts(out, folder, 256) == documents[:1]
    assert isinstance(documents[0], Document)


def test_what_is_no_text(folder: Path):
    (folder / 'b.jsonl').write_text('{"prompt": [1]}\n')
    out = str(folder / 'out.jsonl')
    with pytest.raises(SystemExit, match='line 1 is no document: KeyError'):
        main([str(folder), out, str(folder / 'b.jsonl')])
    (folder / 'b.jsonl').write_text(json.dumps({'text': 'a'}))
    with pytest.raises(SystemExit, match='no text has two tokens'):
        main([str(folder), out, str(folder / 'b.jsonl')])


def test_no_tokenizer(tmp_path: Path):
    with pytest.raises(SystemExit, match='it has no tokenizer.json'):
        main([str(tmp_path), str(tmp_path / 'o'), str(tmp_path / 'a')])
