import json
import math
from pathlib import Path

import pytest
import tiny
import tiny_hf
import torch
import torch.distributed.checkpoint as dcp

from foundry_upcycle.config import UpcyclingConfig
from foundry_upcycle.conversion.convert import convert
from foundry_upcycle.conversion.export_hf import export_hf
from foundry_upcycle.conversion.inspect import describe
from foundry_upcycle.conversion.verify import verify
from foundry_upcycle.errors import CheckpointError


@pytest.fixture
def dense(tmp_path) -> str:
    return tiny.save_dense(tiny.build_dense(), tmp_path / 'dense.pt')


@pytest.fixture
def moe(dense, tmp_path) -> str:
    out = str(tmp_path / 'moe.pt')
    convert(UpcyclingConfig(dense, seed=5), out, 'pt')
    return out


def change(path: str, name: str, value: float) -> None:
    """Changes one number of a checkpoint in place."""
    content = torch.load(path, weights_only=True)
    content['state']['model'][name][-1, -1] += value
    torch.save(content, path)


def test_a_conversion_passes(dense, moe):
    result = verify(dense, moe)
    assert result.passed
    assert result.routers and result.provenance
    assert result.tensors == len(tiny.build_moe().state_dict())
    assert result.logits <= 1e-5
    assert result.lines()[-1] == 'The mixture is the dense model.'


@pytest.mark.parametrize('dtype', [None, torch.bfloat16])
def test_layers_that_stay_dense_pass(dense, tmp_path, dtype):
    out = str(tmp_path / 'some.pt')
    config = UpcyclingConfig(dense, seed=5)
    convert(config, out, 'pt', moe_layers=[1], dtype=dtype)
    result = verify(dense, out)
    assert result.passed and result.routers and result.provenance
    change(out, 'model.transformer.blocks.0.ffn.up_proj.weight', 1.0)
    result = verify(dense, out)
    assert not result.passed
    assert list(result.differing) == [
        'model.transformer.blocks.0.ffn.up_proj.weight',
    ]


@pytest.mark.parametrize('dtype', [None, torch.bfloat16])
def test_an_export_passes_through_its_chain_of_manifests(
    dense,
    moe,
    tmp_path,
    dtype,
):
    out = str(tmp_path / 'mixtral')
    export_hf(moe, out, dtype=dtype)
    result = verify(dense, out)
    assert result.passed and result.routers and result.provenance


def test_what_hf_checkpointer_writes_passes(dense, moe, tmp_path):
    folders = {}
    for name, build in (('dense', tiny.build_dense), ('moe', tiny.build_moe)):
        model = build()
        path = {'dense': dense, 'moe': moe}[name]
        state = torch.load(path, weights_only=True)['state']['model']
        model.load_state_dict(state)
        folders[name] = str(tmp_path / name)
        # Of Foundry's own torch_dmoe.
        model.model.save_pretrained(folders[name])
    assert verify(*folders.values()).passed
    assert dict(describe(folders['moe'])
               )['format'] == ('Hugging Face folder (mpt, safetensors)')
    mixtral = str(tmp_path / 'mixtral')
    export_hf(folders['moe'], mixtral, like=folders['moe'])
    assert verify(folders['dense'], mixtral).passed


def test_a_hugging_face_source_passes(tmp_path):
    tiny_hf.save_llama(tmp_path / 'llama')
    source, out = str(tmp_path / 'llama'), str(tmp_path / 'moe')
    convert(UpcyclingConfig(source), out, 'dcp')
    assert verify(source, out).passed


@pytest.mark.parametrize(
    'name,moves_logits',
    [
        ('model.transformer.blocks.1.ffn.experts.mlp.w2', True),
        ('model.transformer.blocks.0.norm_1.weight', True),
        ('model.transformer.blocks.2.ffn.router.layer.weight', False),
    ],
)
def test_a_changed_tensor_is_named(dense, moe, name, moves_logits):
    # One that does not tell the file from others, as first versions wrote it:
    # it gives the routers' seed, though the file is saved anew.
    file = Path(f'{moe}.manifest.json')
    manifest = json.loads(file.read_text())
    manifest['outputs'] = [*manifest['outputs']]
    file.write_text(json.dumps(manifest))
    content = torch.load(moe, weights_only=True)
    content['state']['model'][name].view(-1)[-1] += 0.5
    torch.save(content, moe)
    result = verify(dense, moe, tolerance=1e-5)
    assert not result.passed
    assert list(result.differing) == [name]
    assert result.differing[name] == pytest.approx(0.5)
    assert f'{name}: by 0.5' in '\n'.join(result.lines())
    assert result.lines()[-1] == 'The mixture is NOT the dense model.'


def test_a_nan_is_a_difference(dense, moe):
    name = 'model.transformer.blocks.1.ffn.experts.mlp.w1'
    change(moe, name, math.nan)
    result = verify(dense, moe)
    assert result.differing == {name: math.inf}


def test_another_dense_checkpoint_is_found_out(moe, tmp_path):
    other = tiny.save_dense(tiny.build_dense(seed=3), tmp_path / 'other.pt')
    result = verify(other, moe)
    assert not result.passed
    assert result.provenance is False
    assert 'names other files' in '\n'.join(result.lines())
    assert 'model.transformer.wte.weight' in result.differing


def test_routers_are_left_out_where_their_seed_is_not_known(dense, moe):
    Path(f'{moe}.manifest.json').unlink()
    change(moe, 'model.transformer.blocks.0.ffn.router.layer.weight', 1.0)
    result = verify(dense, moe)
    assert result.passed
    assert not result.routers and result.provenance is None
    assert 'without routers' in '\n'.join(result.lines())


def test_combine_weights_that_do_not_sum_to_1_are_found_out(dense, moe):
    content = torch.load(moe, weights_only=True)
    model = content['state']['integrations']['huggingface']['model']
    ffn = model['config']['content']['ffn_config']
    ffn['moe_normalize_expert_weights'] = None
    torch.save(content, moe)
    result = verify(dense, moe)
    assert not result.differing
    assert result.logits > 0.01
    assert not result.passed


def test_files_that_only_a_tokenizer_is_in_do_not_count(dense, tmp_path):
    state = torch.load(dense, weights_only=True)
    entry = {'file_extension': '.json', 'content': {'a': 0}}
    huggingface = state['state']['integrations']['huggingface']
    huggingface['tokenizer'] = {'vocab.json': entry}
    folder, out = str(tmp_path / 'dcp'), str(tmp_path / 'moe.pt')
    files = dcp.FileSystemWriter(folder, single_file_per_rank=False)
    dcp.save(state, storage_writer=files, no_dist=True)
    convert(UpcyclingConfig(folder), out, 'pt')
    assert verify(folder, out).provenance


def test_equal_weights_of_other_files_pass(dense, moe, tmp_path):
    content = torch.load(dense, weights_only=True)
    content['state']['more'] = 1
    torch.save(content, dense)
    result = verify(dense, moe)
    assert result.passed and result.provenance is False


def test_a_setting_that_no_logit_shows_is_found_out(dense, moe):
    content = torch.load(moe, weights_only=True)
    model = content['state']['integrations']['huggingface']['model']
    model['config']['content']['attn_config']['sliding_window_size'] = 20
    torch.save(content, moe)
    result = verify(dense, moe, n_tokens=16)
    assert not result.differing
    assert not result.passed
    assert 'sliding_window_size=20' in '\n'.join(result.lines())


def test_mixed_dtypes_are_compared_as_they_are_stored(tmp_path):
    model = tiny.build_dense()
    for name, parameter in model.named_parameters():
        if 'norm' not in name:
            parameter.data = parameter.data.bfloat16()
        else:
            parameter.data.add_(0.001)
    source = tiny.save_dense(model, tmp_path / 'dense.pt')
    convert(UpcyclingConfig(source), str(tmp_path / 'moe.pt'), 'pt')
    result = verify(source, str(tmp_path / 'moe.pt'))
    assert result.passed and result.logits <= 1e-5


def test_two_dense_checkpoints_are_refused(dense):
    with pytest.raises(CheckpointError, match='it holds no experts'):
        verify(dense, dense)


def test_a_checkpoint_without_config_is_refused(moe, tmp_path):
    source = tmp_path / 'bare.pt'
    state = {'state': {'model': tiny.build_dense().state_dict()}}
    torch.save(state, source)
    with pytest.raises(CheckpointError, match='bare.pt: it carries no model'):
        verify(str(source), moe)
