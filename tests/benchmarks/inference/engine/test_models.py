"""Folders for vLLM, and what a model weighs."""

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
    config_of,
    count_parameters,
    describe_model_folder,
    shape_of_config,
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


def test_tied_embeddings_count_once():
    saved = count_parameters(SHAPE) - count_parameters(SHAPE, tied=True)
    assert saved == 1024 * 100352


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
    assert shape_of_config(config) == {
        **SHAPE, 'max_position_embeddings': config['max_position_embeddings']
    }


def test_moe_config():
    config = config_of({**SHAPE, 'max_position_embeddings': 512}, 8, 2)
    assert config['architectures'] == ['MixtralForCausalLM']
    assert config['num_local_experts'] == 8
    assert config['num_experts_per_tok'] == 2
    assert config['max_position_embeddings'] == 512


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


def write_real(folder: Path, files: list[str], index: bool) -> Path:
    write_model_folder(SHAPE, folder)
    for name in files:
        (folder / name).write_bytes(b'weights')
    if index:
        content = {
            'weight_map': {
                'a': 'one.safetensors',
                'b': 'two.safetensors'
            }
        }
        path = folder / 'model.safetensors.index.json'
        path.write_text(json.dumps(content))
    return folder


def test_complete_folders(tmp_path: Path):
    one = write_real(tmp_path / 'one', ['model.safetensors'], False)
    files = ['one.safetensors', 'two.safetensors']
    two = write_real(tmp_path / 'two', files, True)
    for folder in (one, two):
        config = check_model_folder(folder, ('MistralForCausalLM', ))
        assert config['hidden_size'] == 1024
    assert describe_model_folder(two)['weight_bytes'] == {
        'one.safetensors': 7,
        'two.safetensors': 7,
    }
    first, second = map(describe_model_folder, (one, two))
    assert first['config_sha256'] == second['config_sha256']
    assert first['index_sha256'] is None


def test_folders_without_weights(tmp_path: Path):
    one = write_real(tmp_path / 'one', [], False)
    problem = 'model folder without weights: no model.safetensors'
    with pytest.raises(HarnessError, match=problem):
        check_model_folder(one)
    two = write_real(tmp_path / 'two', ['one.safetensors'], True)
    problem = 'model folder without weights: no two.safetensors'
    with pytest.raises(HarnessError, match=problem):
        check_model_folder(two)


def test_folders_of_other_models(tmp_path: Path):
    with pytest.raises(HarnessError, match='without config.json'):
        check_model_folder(tmp_path)
    one = write_real(tmp_path / 'one', ['model.safetensors'], False)
    problem = r"architecture \['MistralForCausalLM'\], not MixtralForCausalLM"
    with pytest.raises(HarnessError, match=problem):
        check_model_folder(one, ('MixtralForCausalLM', ))
