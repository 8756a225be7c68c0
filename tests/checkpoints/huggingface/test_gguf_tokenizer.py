"""Tokenizers in GGUF files."""

from pathlib import Path
from typing import Any

import pytest
from tiny_gguf import TOKEN_TYPES, TOKENS, write_gguf
from transformers import AutoTokenizer

from foundry_upcycle.checkpoints.huggingface.gguf_file import read_gguf
from foundry_upcycle.checkpoints.huggingface.gguf_tokenizer import (
    check_tokenizer,
    write_tokenizer,
)
from foundry_upcycle.errors import CheckpointError


def read_tokenizer(folder: Path, **changes: Any) -> Any:
    """Writes a file and its tokenizer, and loads that."""
    write_gguf(folder / 'tiny.gguf', **changes)
    write_tokenizer(read_gguf(str(folder / 'tiny.gguf')), 64, folder / 'hf')
    return AutoTokenizer.from_pretrained(folder / 'hf')


def test_tokenizer_is_the_files(tmp_path: Path):
    template = '{% for m in messages %}<|start|>{{ m.content }}{% endfor %}'
    changes = {'tokenizer__chat_template': template}
    tokenizer = read_tokenizer(tmp_path, **changes)
    assert tokenizer.convert_ids_to_tokens(range(len(TOKENS))) == TOKENS
    assert len(tokenizer) == len(TOKENS)
    assert tokenizer.special_tokens_map == {
        'bos_token': '<|start|>',
        'eos_token': '<|end|>',
        'pad_token': '<|end|>',
        'unk_token': '<|endoftext|>',
    }
    assert tokenizer.model_input_names == ['input_ids', 'attention_mask']
    assert tokenizer.model_max_length == 64
    assert tokenizer.clean_up_tokenization_spaces is False
    messages = [{'role': 'user', 'content': 'abc'}]
    ids = tokenizer.apply_chat_template(messages)
    assert tokenizer.convert_ids_to_tokens(ids) == ['<|start|>', 'abc']


@pytest.mark.parametrize('pre', ['smollm', 'gpt-2', 'llama-bpe', 'qwen2'])
def test_text_survives(tmp_path: Path, pre: str):
    tokenizer = read_tokenizer(tmp_path, tokenizer__ggml__pre=pre)
    for text in (
            'the abc, the 123\n\n',
            '  two spaces\t and a tab ',
            'def f(x):\n    return x + 12  # é — 漢字 😀\r\n',
            " a , b . it's",
            '<|start|>the <tool>abc<|end|>\n',
    ):
        ids = tokenizer(text, add_special_tokens=False)['input_ids']
        assert tokenizer.decode(ids) == text


# Worked by hand from MERGES and the words that each name stands for.
@pytest.mark.parametrize(
    'pre,text,expected',
    [
        ('smollm', 'the the', ['the', 'Ġthe']),
        ('smollm', '<|end|>ab<tool>', ['<|end|>', 'ab', '<tool>']),
        # Each digit is a word; the space before one is left alone.
        ('smollm', ' 123', ['Ġ', '1', '2', '3']),
        # A number is one word, its space included; no merge is `Ġ 1`.
        ('gpt-2', ' 1231', ['Ġ', '123', '1']),
        # Three digits at most: 312, 312; without that limit 3, 123, 12.
        ('llama-bpe', '312312', ['3', '12', '3', '12']),
        ('gpt-2', '312312', ['3', '123', '12']),
        ('qwen2', ' 123', ['Ġ', '1', '2', '3']),
        # A word that is a token stays whole, though no merge makes it.
        ('llama-bpe', 'xyz', ['xyz']),
        ('gpt-2', 'xyz', ['x', 'y', 'z']),
        # é of two code points becomes one, of two bytes.
        ('qwen2', 'e\u0301', ['Ã', '©']),
        ('gpt-2', 'e\u0301', ['e', 'Ì', 'ģ']),
    ],
)
def test_words_end_where_they_did(
    tmp_path: Path,
    pre: str,
    text: str,
    expected: list[str],
):
    tokenizer = read_tokenizer(tmp_path, tokenizer__ggml__pre=pre)
    ids = tokenizer(text, add_special_tokens=False)['input_ids']
    assert tokenizer.convert_ids_to_tokens(ids) == expected


@pytest.mark.parametrize(
    'pre,add_bos,expected',
    [
        ('smollm', None, False),
        ('smollm', True, True),
        # llama.cpp's default for this one.
        ('llama-bpe', None, True),
        ('llama-bpe', False, False),
    ],
)
def test_bos(tmp_path: Path, pre: str, add_bos: Any, expected: bool):
    changes = {'tokenizer__ggml__pre': pre}
    changes['tokenizer__ggml__add_bos_token'] = add_bos
    tokenizer = read_tokenizer(tmp_path, **changes)
    ids = tokenizer('ab')['input_ids']
    tokens = ['<|start|>', 'ab'] if expected else ['ab']
    assert tokenizer.convert_ids_to_tokens(ids) == tokens
    assert tokenizer.decode(ids, skip_special_tokens=True) == 'ab'


@pytest.mark.parametrize(
    'changes,match',
    [
        ({
            'model': None
        }, 'it has no tokenizer.ggml.model'),
        ({
            'model': 'llama'
        }, "tokenizer is of the kind 'llama'; .* Fix: .*--tokenizer FOLDER"),
        ({
            'pre': 'tekken'
        },
         "pre is 'tekken'; known are gpt-2, smollm, .* Fix: .*--tokenizer FO"),
        ({
            'add_eos_token': True
        }, 'add_eos_token is True, which is for embeddings'),
        ({
            'unknown_token_id': 9999
        }, 'unknown_token_id is 9999, and there are 269 tokens'),
        ({
            'merges': ['a missing']
        }, 'its tokens and merges do not fit together .*missing'),
        ({
            'tokens': [*TOKENS[:-1], TOKENS[-2]]
        }, 'tokens has 269 tokens, 268 of them different'),
        ({
            'token_type': TOKEN_TYPES[1:]
        }, '269 of them different, and .*token_type 268 kinds'),
        ({
            'tokens': 'abc'
        }, "tokens is 'abc', which is not a list of texts"),
    ],
)
def test_refused(tmp_path: Path, changes: dict[str, Any], match: str):
    fields = {f'tokenizer__ggml__{k}': value for k, value in changes.items()}
    with pytest.raises(CheckpointError, match=match):
        read_tokenizer(tmp_path, **fields)
    assert not (tmp_path / 'hf').exists()


def test_a_folders_tokenizer_must_be_the_files(tmp_path: Path):
    vocabulary = read_tokenizer(tmp_path).get_vocab()
    file = read_gguf(str(tmp_path / 'tiny.gguf'))
    check_tokenizer(file, 'folder', vocabulary)
    # Converters rename what was added; more tokens have no row to go wrong.
    del vocabulary['<tool>'], vocabulary['<|end|>']
    check_tokenizer(file, 'folder', {**vocabulary, 'more': 300})
    vocabulary['the'], vocabulary['abc'] = vocabulary['abc'], vocabulary['the']
    ids = f'{TOKENS.index("the")}, in this tokenizer {TOKENS.index("abc")}'
    with pytest.raises(CheckpointError, match=f"'the' has the id {ids}"):
        check_tokenizer(file, 'folder', vocabulary)
    del vocabulary['the']
    with pytest.raises(CheckpointError, match="'the' has .* tokenizer None"):
        check_tokenizer(file, 'folder', vocabulary)
