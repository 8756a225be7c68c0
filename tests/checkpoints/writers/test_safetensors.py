import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from foundry_upcycle.checkpoints.readers.monolithic import MonolithicReader
from foundry_upcycle.checkpoints.writers.output import new_output
from foundry_upcycle.checkpoints.writers.safetensors import write_safetensors
from foundry_upcycle.errors import CheckpointError


def source_of(
    tensors: dict[str, torch.Tensor], folder: Path
) -> MonolithicReader:
    torch.save({'state': {'model': tensors}}, folder / 'source.pt')
    return MonolithicReader(str(folder / 'source.pt'))


def ignore(n_bytes: int) -> None:
    pass


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        vocab_size=64,
    )
    return LlamaForCausalLM(config)


@pytest.mark.parametrize(
    'max_bytes,n_files',
    [(5_000_000_000, 1), (40_000, 4), (1000, 24)],
)
def test_folder_is_that_of_transformers(max_bytes, n_files, model, tmp_path):
    expected = tmp_path / 'expected'
    model.save_pretrained(expected, max_shard_size=max_bytes)
    config = json.loads((expected / 'config.json').read_text())
    source = source_of(model.state_dict(), tmp_path)
    found, sizes = tmp_path / 'found', []
    write_safetensors(source, found, config, None, sizes.append, max_bytes)
    names = sorted(os.listdir(expected))
    names.remove('generation_config.json')
    assert sorted(os.listdir(found)) == names
    assert sum(name.endswith('.safetensors') for name in names) == n_files
    for name in names:
        assert (found / name).read_bytes() == (expected / name).read_bytes()
    assert sum(sizes) == sum(i.n_bytes for i in source.tensors.values())
    loaded = LlamaForCausalLM.from_pretrained(found)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


def various() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    tensors = {
        'a bool': torch.tensor([True, False, True]),
        'byte': torch.arange(3, dtype=torch.uint8),
        'int8': torch.arange(3, dtype=torch.int8),
        'int16': torch.arange(3, dtype=torch.int16),
        'int32': torch.arange(3, dtype=torch.int32),
        'int64': torch.arange(3),
        'none': torch.empty(3, 0),
        'cube': torch.randn(3, 4, 5),
        'ünicode "name"': torch.randn(1),
    }
    for dtype in ('float16', 'bfloat16', 'float32', 'float64'):
        tensors[dtype] = torch.randn(3, 5).to(getattr(torch, dtype))
    return tensors


def test_every_dtype_and_shape(tmp_path):
    tensors = various()
    source = source_of(tensors, tmp_path)
    write_safetensors(source, tmp_path / 'out', {}, None, ignore)
    path = tmp_path / 'out' / 'model.safetensors'
    found = load_file(path)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name
    with safe_open(path, 'pt') as file:
        assert file.metadata() == {'format': 'pt'}


def test_tensors_are_aligned(tmp_path):
    source = source_of(various(), tmp_path)
    write_safetensors(source, tmp_path / 'out', {}, None, ignore)
    data = (tmp_path / 'out' / 'model.safetensors').read_bytes()
    length = int.from_bytes(data[:8], 'little')
    assert length % 8 == 0
    header = json.loads(data[8:8 + length])
    for name, info in source.tensors.items():
        start, stop = header[name]['data_offsets']
        assert start % info.dtype.itemsize == 0
        assert stop - start == info.n_bytes


def test_dtype_is_converted(tmp_path):
    tensors = various()
    source = source_of(tensors, tmp_path)
    write_safetensors(source, tmp_path / 'out', {}, torch.bfloat16, ignore)
    found = load_file(tmp_path / 'out' / 'model.safetensors')
    for name, tensor in tensors.items():
        is_float = tensor.is_floating_point()
        expected = tensor.to(torch.bfloat16) if is_float else tensor
        assert found[name].dtype == expected.dtype
        assert torch.equal(found[name], expected)


def test_dtype_that_safetensors_has_not(tmp_path):
    source = source_of({'w': torch.zeros(2, dtype=torch.cfloat)}, tmp_path)
    with pytest.raises(
            CheckpointError,
            match='w has dtype torch.complex64, which .* Fix: pass a dtype',
    ):
        write_safetensors(source, tmp_path / 'out', {}, None, ignore)
    assert not (tmp_path / 'out').exists()


def test_missing_rows_are_an_error(tmp_path, monkeypatch):
    source = source_of({'w': torch.zeros(2)}, tmp_path)
    monkeypatch.setattr(source, 'rows', lambda *_: iter([]))
    with pytest.raises(CheckpointError, match='w of .* read as 0 rows'):
        with new_output(tmp_path / 'out') as path:
            write_safetensors(source, path, {}, None, ignore)
    assert os.listdir(tmp_path) == ['source.pt']


def test_reference_library_gives_the_same_bytes(tmp_path):
    tensors = {'b': torch.randn(3, 5), 'a': torch.randn(7), 'c': torch.zeros(0)}
    source = source_of(tensors, tmp_path)
    write_safetensors(source, tmp_path / 'out', {}, None, ignore)
    save_file(tensors, tmp_path / 'expected', {'format': 'pt'})
    found = (tmp_path / 'out' / 'model.safetensors').read_bytes()
    assert found == (tmp_path / 'expected').read_bytes()
