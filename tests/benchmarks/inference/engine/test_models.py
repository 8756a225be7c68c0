"""Folders for vLLM, and what a model weighs."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from benchmarks.inference.engine.models import (
    check_model_folder,
    config_number,
    config_of,
    count_elements,
    count_parameters,
    describe_model_folder,
    weight_bytes,
    write_model_folder,
)
from benchmarks.inference.errors import HarnessError

# The paper's Table 3.
SHAPES = {
    '430m': {
        'd_model': 1024,
        'ffn_hidden_size': 2560,
        'n_layers': 22,
        'n_heads': 16,
        'kv_n_heads': 4,
        'vocab_size': 100352,
    },
    '1b': {
        'd_model': 2048,
        'ffn_hidden_size': 5120,
        'n_layers': 24,
        'n_heads': 16,
        'kv_n_heads': 4,
        'vocab_size': 100352,
    },
}
SHAPE = SHAPES['430m']


# The arithmetic is in tests/planning/test_flops.py.
@pytest.mark.parametrize(
    ('size', 'experts', 'parameters'),
    [
        ('430m', 1, 436_253_696),
        ('430m', 8, 1_647_539_200),
        ('1b', 1, 1_417_775_104),
        ('1b', 8, 6_702_991_360),
    ],
)
def test_parameters_of_the_paper(size: str, experts: int, parameters: int):
    assert count_parameters(SHAPES[size], experts) == parameters
    # Two bytes each.
    assert weight_bytes(SHAPES[size], experts) == 2 * parameters


@pytest.mark.parametrize(
    ('experts', 'config_class', 'model_class'),
    [
        (1, MistralConfig, MistralForCausalLM),
        (8, MixtralConfig, MixtralForCausalLM),
    ],
)
def test_parameters_of_transformers(
    experts: int,
    config_class: Any,
    model_class: Any,
):
    shape = {**SHAPE, 'n_layers': 2}
    config = config_class(**config_of(shape, experts, 1))
    with torch.device('meta'):
        model = model_class(config)
    found = sum(parameter.numel() for parameter in model.parameters())
    assert found == count_parameters(shape, experts)


def test_dense_config(tmp_path: Path):
    config = write_model_folder(SHAPE, tmp_path / 'model')
    assert json.loads((tmp_path / 'model/config.json').read_text()) == config
    assert config['architectures'] == ['MistralForCausalLM']
    assert config['head_dim'] == 64
    # The paper's 3500 and 300 tokens fit.
    assert config['max_position_embeddings'] >= 3800
    assert 'num_local_experts' not in config


def test_moe_config():
    config = config_of(SHAPE, 8, 2)
    assert config['architectures'] == ['MixtralForCausalLM']
    assert config['num_local_experts'] == 8
    assert config['num_experts_per_tok'] == 2


@pytest.mark.parametrize(
    ('changes', 'arguments', 'problem'),
    [
        ({
            'width': 3
        }, {}, r"unknown \['width'\]"),
        ({
            'd_model': 0
        }, {}, 'shape.d_model=0: not a positive'),
        ({
            'n_heads': 6
        }, {}, 'shape.n_heads=6: does not divide d_model'),
        ({
            'kv_n_heads': 3
        }, {}, 'shape.kv_n_heads=3: does not divide n_heads'),
        ({}, {
            'experts': 0
        }, 'experts=0: not a number'),
        ({}, {
            'experts': 4,
            'top_k': 5
        }, 'top_k=5: not between 1 and 4'),
    ],
)
def test_shapes_that_are_none(
    changes: dict[str, int],
    arguments: dict[str, Any],
    problem: str,
):
    with pytest.raises(HarnessError, match=problem):
        config_of({**SHAPE, **changes}, **arguments)


def test_an_incomplete_shape():
    with pytest.raises(HarnessError, match=r"\['n_layers'\] not set"):
        config_of({k: v for k, v in SHAPE.items() if k != 'n_layers'})


SMALL = {
    'd_model': 64,
    'ffn_hidden_size': 96,
    'n_layers': 2,
    'n_heads': 4,
    'kv_n_heads': 2,
    'vocab_size': 256,
}
WEIGHTS = 'model.safetensors'
INDEX = 'model.safetensors.index.json'


def write_real(
    folder: Path,
    tied: bool = True,
    shards: int = 1,
    seed: int = 0,
) -> Path:
    """A small model, as transformers writes it."""
    torch.manual_seed(seed)
    config = MistralConfig(**config_of(SMALL))
    config.tie_word_embeddings = tied
    model = MistralForCausalLM(config)
    n_bytes = 4 * sum(p.numel() for p in model.parameters())
    model.save_pretrained(folder, max_shard_size=n_bytes // shards + 1000)
    return folder


@pytest.mark.parametrize('tied', [True, False])
def test_count_elements(tmp_path: Path, tied: bool):
    one = write_real(tmp_path / 'one', tied)
    expected = count_parameters(SMALL) - tied * 64 * 256
    assert count_elements(one) == expected
    several = write_real(tmp_path / 'several', tied, shards=3)
    assert len(list(several.glob('*.safetensors'))) > 1
    assert count_elements(several) == expected


@pytest.mark.parametrize(
    'content',
    [
        b'12',
        b'\xff' * 8 + b'{}',
        (9).to_bytes(8, 'little') + b'{"a": [3',
        (9).to_bytes(8, 'little') + b'{"a": {}}',
        (2).to_bytes(8, 'little') + b'[]',
    ],
    ids=['short', 'too long', 'cut', 'no shape', 'no object'],
)
def test_weights_that_can_not_be_read(tmp_path: Path, content: bytes):
    write_real(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(content)
    with pytest.raises(HarnessError, match="its model.safetensors can't be"):
        count_elements(tmp_path)


def test_complete_folders(tmp_path: Path):
    one = write_real(tmp_path / 'one')
    several = write_real(tmp_path / 'several', shards=3)
    for folder in (one, several):
        assert check_model_folder(folder)['hidden_size'] == 64
    found = describe_model_folder(several)
    files = sorted(several.glob('*.safetensors'))
    assert found['weight_bytes'] == {
        path.name: path.stat().st_size
        for path in files
    }
    assert set(found['weight_sha256']) == {path.name for path in files}
    index = (several / INDEX).read_bytes()
    assert found['index_sha256'] == hashlib.sha256(index).hexdigest()
    first = describe_model_folder(one)
    assert first['config_sha256'] == found['config_sha256']
    assert first['index_sha256'] is None


def test_other_weights_of_the_same_size(tmp_path: Path):
    one = describe_model_folder(write_real(tmp_path))
    again = describe_model_folder(write_real(tmp_path))
    other = describe_model_folder(write_real(tmp_path, seed=1))
    assert one == again
    assert one['weight_bytes'] == other['weight_bytes']
    assert one['weight_sha256'] != other['weight_sha256']


def test_both_ends_of_large_files_count(tmp_path: Path):
    write_real(tmp_path)
    mib = 2**20
    digests = set()
    for place in (None, 0, mib - 1, 2 * mib, 3 * mib - 1):
        content = bytearray(3 * mib)
        if place is not None:
            content[place] = 1
        (tmp_path / WEIGHTS).write_bytes(content)
        digests.add(describe_model_folder(tmp_path)['weight_sha256'][WEIGHTS])
    assert len(digests) == 5


@pytest.mark.parametrize('read', [describe_model_folder, count_elements])
def test_nothing_to_describe(tmp_path: Path, read: Any):
    write_model_folder(SHAPE, tmp_path)
    with pytest.raises(HarnessError, match="its model.safetensors can't be"):
        read(tmp_path)


def test_folders_without_weights(tmp_path: Path):
    one = tmp_path / 'one'
    write_model_folder(SHAPE, one)
    problem = 'model folder without weights: no model.safetensors'
    with pytest.raises(HarnessError, match=problem):
        check_model_folder(one)
    several = write_real(tmp_path / 'several', shards=3)
    last = sorted(several.glob('*.safetensors'))[-1]
    last.unlink()
    problem = f'model folder without weights: no {last.name}'
    with pytest.raises(HarnessError, match=problem):
        check_model_folder(several)


def test_no_model_folder(tmp_path: Path):
    with pytest.raises(HarnessError, match="config.json can't be read: FileN"):
        check_model_folder(tmp_path)


@pytest.mark.parametrize('content', ['{"a":', '[]'])
@pytest.mark.parametrize('name', ['config.json', INDEX])
def test_json_that_can_not_be_read(tmp_path: Path, name: str, content: str):
    write_real(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(HarnessError, match=f"its {name} can't be read"):
        check_model_folder(tmp_path)


def test_an_index_of_nothing(tmp_path: Path):
    write_real(tmp_path)
    (tmp_path / INDEX).write_text('{}')
    with pytest.raises(HarnessError, match='json has no weight_map'):
        describe_model_folder(tmp_path)


def test_config_number(tmp_path: Path):
    assert config_number({'vocab_size': 5}, 'vocab_size', tmp_path) == 5
    with pytest.raises(HarnessError, match='config.json has vocab_size None'):
        config_number({}, 'vocab_size', tmp_path)
