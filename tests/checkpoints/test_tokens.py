import io
import json

import pytest
from sentencepiece import SentencePieceTrainer
from tokenizers import AddedToken, Tokenizer, models

from foundry_upcycle.checkpoints.tokens import read_tokens
from foundry_upcycle.errors import CheckpointError

WORDS = {'a': 0, '</s>': 1}


def with_added(model: models.Model) -> dict[str, bytes]:
    tokenizer = Tokenizer(model)
    tokenizer.add_special_tokens([AddedToken('</s>'), AddedToken('<im>')])
    return {
        'tokenizer.json': tokenizer.to_str().encode(),
        'tokenizer_config.json': b'{"eos_token": {"content": "</s>"}}',
    }


def slow() -> dict[str, bytes]:
    config = {
        'added_tokens_decoder': {
            '2': {
                'content': '<im>'
            }
        },
        'eos_token': '</s>',
    }
    return {
        'vocab.json': json.dumps(WORDS).encode(),
        'tokenizer_config.json': json.dumps(config).encode(),
    }


@pytest.mark.parametrize(
    'files',
    [
        with_added(models.WordLevel(WORDS, 'a')),
        with_added(models.BPE(WORDS, [])),
        with_added(models.Unigram([('a', 0.0), ('</s>', 0.0)], 0, False)),
        slow(),
    ],
    ids=['WordLevel', 'BPE', 'Unigram', 'slow'],
)
def test_ids_are_read_from_every_format(files):
    tokens = read_tokens('folder', files)
    assert tokens.vocabulary == WORDS
    assert tokens.added['<im>'] == 2
    assert tokens.special == {'eos_token_id': 1}


def test_ids_of_a_sentencepiece_model():
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(['a b c d']),
        model_writer=model,
        vocab_size=8,
        minloglevel=2,
    )
    files = {
        'tokenizer.model': model.getvalue(),
        'special_tokens_map.json': b'{"bos_token": "<s>"}',
    }
    tokens = read_tokens('folder', files)
    assert sorted(tokens.vocabulary.values()) == [*range(8)]
    assert tokens.special == {'bos_token_id': 1}


def test_another_models_format_has_no_ids():
    tokens = read_tokens('folder', {'tokenizer.model': b'IQ== 0\n'})
    assert tokens.vocabulary == {}


@pytest.mark.parametrize(
    'content',
    [
        b'{',
        b'[]',
        b'{"model": {}}',
        b'\xff',
        b'[' * 100_000,
        b'{"model": {"vocab": {"a": "0"}}}',
    ],
)
def test_a_damaged_tokenizer_is_refused(content):
    with pytest.raises(CheckpointError, match='tokenizer.*--no-tokenizer'):
        read_tokens('folder', {'tokenizer.json': content})
