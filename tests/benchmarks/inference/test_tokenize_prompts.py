"""The script that cuts texts into prompts."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from benchmarks.inference.engine.prompts import write_prompts
from benchmarks.inference.tokenize_prompts import main


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tokenizer of the words w0 to w99, that would cut texts to 4 tokens."""
    words = {f'w{k}': k for k in range(100)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token='w0'))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_truncation(4)
    tokenizer.save(str(tmp_path / 'tokenizer.json'))
    return tmp_path


def write(path: Path, ids: range) -> str:
    path.write_text(' '.join(f'w{k}' for k in ids))
    return str(path)


def test_pieces_of_texts(folder: Path):
    out = folder / 'prompts.jsonl'
    texts = [
        write(folder / 'a', range(1, 18)),
        write(folder / 'b', range(20, 24)),
        # The first piece of a.
        write(folder / 'c', range(1, 12)),
        write(folder / 'd', range(30, 35)),
    ]
    main(str(folder), '5', str(out), *texts)
    prompts = [json.loads(line)['prompt'] for line in out.open()]
    assert prompts == [
        [1, 2, 3, 4, 5],
        [6, 7, 8, 9, 10],
        [11, 12, 13, 14, 15],
        [30, 31, 32, 33, 34],
    ]
    # They are what the harness reads.
    write_prompts(folder / 'p.jsonl', 4, 5, 100, 1, out)


def test_no_tokenizer(tmp_path: Path):
    with pytest.raises(SystemExit, match='tokenizer.json: there is no token'):
        main(
            str(tmp_path), '5', str(tmp_path / 'out'),
            write(tmp_path / 'a', range(9))
        )


def test_texts_that_are_too_short(folder: Path):
    text = write(folder / 'a', range(4))
    with pytest.raises(SystemExit, match='LENGTH=5: no text has so many'):
        main(str(folder), '5', str(folder / 'out'), text)
