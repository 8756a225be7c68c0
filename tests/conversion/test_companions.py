import json

import pytest
import tiny_hf

from foundry_upcycle.conversion.companions import (
    check_vocabulary,
    copy_companions,
)
from foundry_upcycle.errors import CheckpointError


def test_configs_and_tokenizer_are_copied_and_nothing_else(tmp_path):
    source, folder = tmp_path / 'source', tmp_path / 'out'
    tiny_hf.save_llama(source)
    folder.mkdir()
    (folder / 'config.json').write_text('{"mine": 1}')
    copy_companions(str(source), folder)
    assert json.loads((folder / 'config.json').read_text()) == {'mine': 1}
    assert {file.name
            for file in folder.iterdir()} == {
                'config.json',
                'generation_config.json',
                'special_tokens_map.json',
                'tokenizer.json',
                'tokenizer_config.json',
            }


def test_more_tokens_than_rows_are_refused(tmp_path):
    tiny_hf.save_tokenizer(tmp_path, vocab_size=128)
    check_vocabulary(str(tmp_path), 128)
    check_vocabulary(str(tmp_path), 256)  # Padded.
    with pytest.raises(CheckpointError, match='ids up to 127, .*of 127'):
        check_vocabulary(str(tmp_path), 127)


def test_a_damaged_tokenizer_is_refused(tmp_path):
    tiny_hf.save_tokenizer(tmp_path)
    (tmp_path / 'tokenizer.json').write_text('{')
    with pytest.raises(CheckpointError, match='tokenizer could not be loaded'):
        check_vocabulary(str(tmp_path), 128)


def test_a_folder_without_tokenizer_passes(tmp_path):
    check_vocabulary(str(tmp_path), 1)
