"""Tokenizer, generation config and ids on their way through Composer files."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_hf
import torch
import torch.distributed.checkpoint as dcp
from composer.models import HuggingFaceModel
from composer.models.huggingface import get_hf_config_from_composer_state_dict
from llmfoundry.utils import get_hf_tokenizer_from_composer_state_dict
from llmfoundry.utils.builders import build_composer_model
from sentencepiece import SentencePieceTrainer
from transformers import AutoTokenizer

from foundry_upcycle.checkpoints.companions import Companions
from foundry_upcycle.checkpoints.composer_files import (
    from_composer,
    to_composer,
)
from foundry_upcycle.checkpoints.open import open_checkpoint
from foundry_upcycle.config import UpcyclingConfig
from foundry_upcycle.conversion.convert import convert
from foundry_upcycle.conversion.export_hf import export_hf
from foundry_upcycle.conversion.import_hf import import_hf
from foundry_upcycle.errors import CheckpointError

TEMPLATES = {'default': 'chat {{ messages }}\n', 'rag': 'rag {{ messages }}'}


@pytest.fixture(scope='module')
def imported(tmp_path_factory) -> str:
    """A Composer file of a Llama, whose tokenizer transformers 5 saved."""
    folder = tmp_path_factory.mktemp('llama')
    tiny_hf.save_llama(folder / 'hf')
    tiny_hf.save_tokenizer_5(folder / 'hf')
    (folder / 'hf' / 'generation_config.json'
    ).write_text(json.dumps({
        'eos_token_id': [2, 3],
        'temperature': 0.5
    }), )
    import_hf(str(folder / 'hf'), str(folder / 'mpt'))
    return str(folder / 'mpt' / 'checkpoint.pt')


def check_export(folder: Path) -> None:
    model = tiny_hf.load(folder)
    assert model.config.eos_token_id == 2
    assert model.config.bos_token_id == 1
    assert model.config.pad_token_id == 0
    assert model.generation_config.eos_token_id == [2, 3]
    assert model.generation_config.temperature == 0.5
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer('w0 w124').input_ids == [3, 127]
    assert tokenizer.all_special_ids == [1, 2, 0, 127]
    assert tokenizer.chat_template == TEMPLATES


@pytest.mark.parametrize('file_format', ['pt', 'dcp'])
def test_all_of_it_comes_through_without_like(imported, tmp_path, file_format):
    moe = str(tmp_path / 'moe')
    convert(UpcyclingConfig(imported), moe, file_format)
    export_hf(moe, str(tmp_path / 'out'))
    check_export(tmp_path / 'out')


def test_composer_and_foundry_read_what_convert_wrote(imported, tmp_path):
    convert(UpcyclingConfig(imported), str(tmp_path / 'moe.pt'), 'pt')
    content = torch.load(tmp_path / 'moe.pt', weights_only=True)
    huggingface = content['state']['integrations']['huggingface']
    found = HuggingFaceModel.load_huggingface_tokenizer_from_saved_state(
        huggingface,
        tokenizer_save_dir=str(tmp_path / 'composer'),
    )
    # Foundry's scripts/inference/convert_composer_to_hf.py calls this one.
    also_found = get_hf_tokenizer_from_composer_state_dict(
        content,
        trust_remote_code=False,
        tokenizer_save_dir=str(tmp_path / 'foundry'),
    )
    for tokenizer in (found, also_found):
        assert tokenizer is not None
        assert tokenizer('w0 w124').input_ids == [3, 127]
        assert tokenizer.chat_template == TEMPLATES
    # Registered by Foundry's script; transformers has an MPT of its own.
    config = huggingface['model']['config']['content']
    config['attn_config']['attn_type'] = 'multihead_attention'
    assert get_hf_config_from_composer_state_dict(content).eos_token_id == 2


def trained_by_foundry(folder: Path) -> dict[str, Any]:
    """The state of a run, with a tokenizer, as Composer saves it."""
    tiny_hf.save_tokenizer(folder)
    model = build_composer_model(
        'mpt_causal_lm',
        tiny.dense_config(),
        tokenizer=AutoTokenizer.from_pretrained(folder),
    )
    assert isinstance(model, HuggingFaceModel)
    return {
        'state': {
            'model': model.state_dict(),
            'integrations': {
                'huggingface': model.get_metadata(),
            },
        },
    }


@pytest.mark.parametrize('is_sharded', [False, True])
def test_a_runs_own_tokenizer_says_where_a_text_ends(tmp_path, is_sharded):
    state = trained_by_foundry(tmp_path / 'tokenizer')
    source, out = tmp_path / 'run', tmp_path / 'out'
    if is_sharded:
        dcp.save(state, checkpoint_id=source, no_dist=True)
    else:
        torch.save(state, source)
    export_hf(str(source), str(out))
    ids = json.loads((out / 'config.json').read_text())
    assert (ids['bos_token_id'], ids['eos_token_id']) == (1, 2)
    assert ids['pad_token_id'] == 0
    expected = AutoTokenizer.from_pretrained(tmp_path / 'tokenizer')
    found = AutoTokenizer.from_pretrained(out)
    assert found.get_vocab() == expected.get_vocab()
    assert found.special_tokens_map == expected.special_tokens_map
    assert found('w1 w2') == expected('w1 w2')


def test_a_template_without_tokens_survives_sharding(tmp_path):
    state = trained_by_foundry(tmp_path / 'tokenizer')
    files = state['state']['integrations']['huggingface']['tokenizer']
    # As transformers 5 saves it; a sharded checkpoint keeps no empty mapping.
    template = {
        'type': 'TemplateProcessing',
        'single': [{
            'Sequence': {
                'id': 'A',
                'type_id': 0
            }
        }],
        'pair': [],
        'special_tokens': {},
    }
    files['tokenizer.json']['content']['post_processor'] = template
    dcp.save(state, checkpoint_id=tmp_path / 'run', no_dist=True)
    found = open_checkpoint(str(tmp_path / 'run')).companions()
    assert found.json('tokenizer.json')['post_processor'] == template


@pytest.mark.parametrize('name', ['../x.json', '/tmp/x', 'model.safetensors'])
def test_no_file_is_written_elsewhere_or_over_the_model(name):
    files = {name: {'file_extension': '', 'content': 'x'}}
    with pytest.raises(CheckpointError, match='no file of a tokenizer'):
        from_composer('run.pt', {'tokenizer': files}, {})


def test_a_file_that_composer_would_not_keep_so_is_refused():
    files = {'tokenizer.json': {'content': {}}}
    with pytest.raises(CheckpointError, match='not as Composer keeps it'):
        from_composer('run.pt', {'tokenizer': files}, {})


@pytest.mark.parametrize(
    'huggingface',
    [5, [1], {
        'tokenizer': 5
    }, {
        'tokenizer': [1]
    }, {
        'model': 5
    }],
)
def test_what_is_no_mapping_holds_no_files(huggingface):
    assert from_composer('run.pt', huggingface, {}).files == {}


@pytest.mark.parametrize(
    'name,content,message',
    [
        ('vocab.txt', b'\xe9', 'not text in UTF-8'),
        ('tokenization_own.py', b'\xe9', 'not text in UTF-8'),
        ('chat_template.jinja', b'\xe9', 'not text in UTF-8'),
        ('tokenizer_config.json', b'[' * 10**5, 'not JSON'),
    ],
)
def test_a_file_that_no_tokenizer_reads_is_named(
    tmp_path,
    name,
    content,
    message,
):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f'{name}: it is {message}'):
        to_composer(Companions.of_folder(str(tmp_path)))


def test_every_kind_of_file_comes_back_as_it_was():
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(['a b c d']),
        model_writer=model,
        vocab_size=8,
        minloglevel=2,
    )
    files = {
        'tokenizer.model': model.getvalue(),
        'vocab.txt': 'a\nä\n'.encode(),
        'tokenization_own.py': b'1\n',
        'sub/words.py': b'2\n',
        # Not SentencePiece's, so Composer would die of it.
        'other.model': b'IQ== 0\n',
        'empty.tiktoken': b'',
    }
    kept = to_composer(Companions('folder', files))
    extensions = {n: e['file_extension'] for n, e in kept['tokenizer'].items()}
    assert extensions == {
        'tokenizer.model': '.model',
        'vocab.txt': '.txt',
        'tokenization_own.py': '.py',
        'sub/words.py': '',
        'other.model': '',
        'empty.tiktoken': '',
    }
    assert from_composer('run.pt', kept, {}).files == files


def test_half_a_character_is_kept():
    content = r'{"tokenizer_class": "TokenizersBackend", "own": "\ud83d"}'
    files = {'tokenizer_config.json': content.encode()}
    readable = Companions('hf', files).readable_files['tokenizer_config.json']
    assert readable != content.encode()
    assert json.loads(readable)['own'] == json.loads(content)['own']


@pytest.mark.parametrize(
    'config',
    [
        '[' * 100_000,
        '{"auto_map": {"AutoTokenizer": null}}',
        '{"auto_map": {"AutoTokenizer": 5}}',
        json.dumps({'auto_map': {
            'AutoTokenizer': 'x' * 300 + '.A'
        }}),
    ],
    ids=['nested', 'null', 'number', 'long'],
)
def test_a_config_that_names_no_code(tmp_path: Path, config: str):
    (tmp_path / 'tokenizer_config.json').write_text(config)
    found = Companions.of_folder(str(tmp_path))
    assert [*found.files] == ['tokenizer_config.json']


def test_code_is_taken_once_and_from_beside(tmp_path: Path):
    folder = tmp_path / 'hf'
    folder.mkdir()
    (folder / 'tokenizer_config.json'
    ).write_text('{"auto_map": {"AutoTokenizer": "one.A"}}', )
    code = {
        'one.py': b'from .two import B\nfrom .gone import C\n',
        'two.py': b'from .one import A\nfrom .../outside import D\n'
        b'from ./etc/outside import D\nfrom .three import E\n',
        'three.py': b'"\xff"\n',
    }
    for name, content in code.items():
        (folder / name).write_bytes(content)
    (tmp_path / 'outside.py').touch()
    (folder / 'unused.py').touch()
    found = Companions.of_folder(str(folder)).files
    assert found.keys() - {'tokenizer_config.json'} == code.keys()
