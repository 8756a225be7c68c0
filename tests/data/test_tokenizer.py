from pathlib import Path

import pytest
from transformers import AutoTokenizer

from foundry_upcycle.data.tokenizer import train_tokenizer

_TEXTS = [
    'The quick brown fox jumps over a lazy dog, and then it sleeps. ' * 4,
    'def add(a, b):\n    return a + b\n\nprint(add(12, 34))\n' * 4,
]


def test_round_trip_after_loading(tmp_path: Path):
    train_tokenizer(_TEXTS, 300, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == 300
    for text in (*_TEXTS, '  é — 漢字\t\n', ' a , b .'):
        assert tokenizer.decode(tokenizer(text)['input_ids']) == text


def test_special_tokens_differ_and_are_not_added(tmp_path: Path):
    tokenizer = train_tokenizer(_TEXTS, 300, tmp_path)
    assert tokenizer.eos_token_id != tokenizer.pad_token_id
    special = {tokenizer.eos_token_id, tokenizer.pad_token_id}
    assert special.isdisjoint(tokenizer('a b')['input_ids'])


def test_digits_are_single_tokens(tmp_path: Path):
    tokenizer = train_tokenizer(['1234 ' * 100, *_TEXTS], 300, tmp_path)
    assert len(tokenizer('1234')['input_ids']) == 4


def test_closing_brackets_are_single_tokens(tmp_path: Path):
    tokenizer = train_tokenizer(['f(x[y]))' * 50, *_TEXTS], 290, tmp_path)
    assert tokenizer.tokenize('])})') == [']', ')', '}', ')']


def test_too_little_text(tmp_path: Path):
    with pytest.raises(ValueError, match=r'vocab_size=5000 but the text yield'):
        train_tokenizer(_TEXTS, 5000, tmp_path)
