"""Run as a program by Composer's launcher: loads on two ranks."""

import os
import sys
from pathlib import Path

import pytest
import tiny
import torch
import torch.distributed.checkpoint as dcp
from composer.utils import dist, get_device
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from two_ranks import run_on_two_ranks

from foundry_upcycle.checkpoints.open import open_checkpoint
from foundry_upcycle.checkpoints.readers.monolithic import MonolithicReader
from foundry_upcycle.checkpoints.readers.sharded import ShardedReader
from foundry_upcycle.checkpoints.writers.output import new_output
from foundry_upcycle.checkpoints.writers.sharded import write_sharded
from foundry_upcycle.errors import CheckpointError


def ignore(n_bytes: int) -> None:
    pass


@pytest.mark.parametrize('build', [tiny.build_dense, tiny.build_moe])
def test_reader_finds_what_was_written(build, tmp_path):
    source = open_checkpoint(tiny.save_dense(build(), tmp_path / 'source.pt'))
    sizes = []
    write_sharded(source, tmp_path / 'out', None, sizes.append)
    found = open_checkpoint(str(tmp_path / 'out'))
    assert isinstance(found, ShardedReader)
    assert found.tensors == source.tensors
    assert found.model_config == source.model_config
    for name, info in source.tensors.items():
        n = info.shape[0]
        assert torch.equal(
            found.read(name, 0, 0, n), source.read(name, 0, 0, n)
        )
    assert sum(sizes) == sum(i.n_bytes for i in source.tensors.values())


@pytest.mark.filterwarnings('ignore::UserWarning')
def test_torch_finds_the_structure_that_composer_saves(tmp_path):
    source = tiny.save_dense(tiny.build_dense(), tmp_path / 'source.pt')
    write_sharded(open_checkpoint(source), tmp_path / 'out', None, ignore)
    dcp_to_torch_save(tmp_path / 'out', tmp_path / 'out.pt')
    found = torch.load(tmp_path / 'out.pt', weights_only=True)['state']
    expected = torch.load(source, weights_only=True)['state']
    weights = expected['model']
    assert found['model'].keys() == weights.keys()
    for name, tensor in weights.items():
        assert torch.equal(found['model'][name], tensor)
    # Composer's own sharded checkpoints drop empty parts, too.
    del expected['integrations']['huggingface']['tokenizer']
    assert found['integrations'] == expected['integrations']


@pytest.mark.filterwarnings('ignore::UserWarning')
@pytest.mark.parametrize('dtype', [None, torch.bfloat16])
def test_dtypes_and_shapes(dtype, tmp_path):
    tensors = {
        'float': torch.randn(5, 3),
        'half': torch.randn(5, 3).half(),
        'vector': torch.randn(7),
        'no_rows': torch.empty(0, 3),
        'int': torch.arange(4),
    }
    torch.save({'state': {'model': tensors}}, tmp_path / 'source.pt')
    source = MonolithicReader(str(tmp_path / 'source.pt'))
    write_sharded(source, tmp_path / 'out', dtype, ignore)
    reader = ShardedReader(str(tmp_path / 'out'))
    loaded = {}
    for name, tensor in tensors.items():
        if dtype and tensor.is_floating_point():
            tensors[name] = tensor.to(dtype)
        found = reader.read(name, 0, 0, len(tensor))
        assert found.dtype == tensors[name].dtype
        assert torch.equal(found, tensors[name])
        loaded[f'state.model.{name}'] = torch.zeros_like(tensors[name])
    dcp.load(loaded, checkpoint_id=tmp_path / 'out')
    for name, tensor in tensors.items():
        assert torch.equal(loaded[f'state.model.{name}'], tensor)


def test_missing_rows_are_an_error(tmp_path, monkeypatch):
    torch.save({'state': {'model': {'w': torch.randn(3)}}}, tmp_path / 'a.pt')
    source = MonolithicReader(str(tmp_path / 'a.pt'))
    monkeypatch.setattr(source, 'rows', lambda *_: iter([]))
    with pytest.raises(CheckpointError, match='w of .* read as 0 rows'):
        with new_output(tmp_path / 'out') as path:
            write_sharded(source, path, None, ignore)
    assert os.listdir(tmp_path) == ['a.pt']


def test_two_ranks_load_it(tmp_path):
    source = tiny.save_dense(tiny.build_moe(), tmp_path / 'source.pt')
    write_sharded(open_checkpoint(source), tmp_path / 'out', None, ignore)
    run_on_two_ranks(__file__, tmp_path)
    expected = torch.load(source, weights_only=True)['state']['model']
    loaded = torch.load(tmp_path / 'loaded', weights_only=True)
    assert loaded.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(loaded[name], tensor), name


def load_on_this_rank(folder: Path) -> None:
    dist.initialize_dist(get_device('cpu'))
    trainer = tiny.make_trainer(
        tiny.build_moe(seed=7),
        parallelism_config={'fsdp': {
            'state_dict_type': 'sharded',
        }},
        load_path=str(folder / 'out'),
        load_weights_only=True,
    )
    state = tiny.full_state(trainer.state.model)
    if dist.get_global_rank() == 0:
        torch.save(state, folder / 'loaded')


if __name__ == '__main__':
    load_on_this_rank(Path(sys.argv[1]))
