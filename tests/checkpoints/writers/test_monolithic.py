import os
import resource
import zipfile
from pathlib import Path

import pytest
import tiny
import torch
from composer.models import ComposerModel

from foundry_upcycle.checkpoints.base import Checkpoint
from foundry_upcycle.checkpoints.open import open_checkpoint
from foundry_upcycle.checkpoints.readers.archive import load_structure
from foundry_upcycle.checkpoints.readers.monolithic import MonolithicReader
from foundry_upcycle.checkpoints.writers.monolithic import write_monolithic
from foundry_upcycle.checkpoints.writers.output import new_output
from foundry_upcycle.errors import CheckpointError

BUILDERS = {'dense': tiny.build_dense, 'moe': tiny.build_moe}


def write(
    source: Checkpoint,
    path: Path,
    dtype: torch.dtype | None = None,
) -> int:
    """Writes ``source``; returns the progress that was told."""
    sizes = []
    write_monolithic(source, path, dtype, sizes.append)
    return sum(sizes)


def source_of(tensors: dict[str, torch.Tensor], path: Path) -> MonolithicReader:
    torch.save({'state': {'model': tensors}}, path)
    return MonolithicReader(str(path))


@pytest.fixture(params=BUILDERS)
def model(request) -> ComposerModel:
    return BUILDERS[request.param]()


def test_content_is_what_composer_saves(model, tmp_path):
    source = tiny.save_dense(model, tmp_path / 'source.pt')
    written = write(open_checkpoint(source), tmp_path / 'out.pt')
    expected = torch.load(source, weights_only=True)
    content = torch.load(tmp_path / 'out.pt', weights_only=True)
    found = content['state'].pop('model')
    weights = expected['state'].pop('model')
    assert content == expected
    assert list(found) == list(weights)
    for name, tensor in weights.items():
        assert torch.equal(found[name], tensor)
    assert written == sum(t.nbytes for t in weights.values())
    reader = open_checkpoint(str(tmp_path / 'out.pt'))
    assert reader.model_config == open_checkpoint(source).model_config


@pytest.mark.filterwarnings('ignore::UserWarning')
def test_composer_loads_it(tmp_path):
    source = tiny.save_dense(tiny.build_dense(), tmp_path / 'source.pt')
    write(open_checkpoint(source), tmp_path / 'out.pt')
    trainer = tiny.make_trainer(
        tiny.build_dense(seed=1),
        load_path=str(tmp_path / 'out.pt'),
        load_weights_only=True,
    )
    expected = tiny.build_dense().state_dict()
    for name, tensor in trainer.state.model.state_dict().items():
        assert torch.equal(tensor, expected[name])
    trainer.close()


DTYPES = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.int64,
    torch.uint8,
    torch.bool,
)


def various() -> dict[str, torch.Tensor]:
    """Tensors of every dtype, odd size, none, and shared or strided memory."""
    torch.manual_seed(0)
    tensors = {f'{t}': torch.randn(5, 3).mul(9).to(t) for t in DTYPES}
    shared = torch.randn(6, 8)
    return {
        **tensors,
        'none': torch.empty(4, 0),
        'no_rows': torch.empty(0, 4),
        'vector': torch.randn(7),
        'cube': torch.randn(3, 4, 5),
        'transposed': torch.randn(6, 5).t(),
        'first': shared[:3],
        'columns': shared[:, 3:5],
        'parameter': torch.nn.Parameter(torch.randn(2, 2)),
    }


def test_every_dtype_and_shape(tmp_path):
    tensors = various()
    write(source_of(tensors, tmp_path / 'source.pt'), tmp_path / 'out.pt')
    loaded = torch.load(tmp_path / 'out.pt', weights_only=True)
    reader = MonolithicReader(str(tmp_path / 'out.pt'))
    for name, expected in tensors.items():
        found = loaded['state']['model'][name]
        read = reader.read(name, 0, 0, expected.shape[0])
        for tensor in (found, read):
            assert tensor.dtype == expected.dtype
            assert tensor.is_contiguous()
            assert tensor.shape == expected.shape
            assert torch.equal(
                tensor.view(torch.uint8),
                expected.detach().contiguous().view(torch.uint8),
            ), name


def test_dtype_is_converted(tmp_path):
    tensors = various()
    path = tmp_path / 'out.pt'
    write(source_of(tensors, tmp_path / 'source.pt'), path, torch.bfloat16)
    found = torch.load(path, weights_only=True)['state']['model']
    for name, tensor in tensors.items():
        is_float = tensor.is_floating_point()
        expected = tensor.to(torch.bfloat16) if is_float else tensor
        assert found[name].dtype == expected.dtype
        assert torch.equal(found[name], expected), name


def test_transposed_blocks_are_written_by_rows(tmp_path, monkeypatch):
    source = source_of({'w': torch.randn(6, 5)}, tmp_path / 'source.pt')
    whole = source.read('w', 0, 0, 6)
    blocks = [whole[:4].t().contiguous().t(), whole[4:]]
    monkeypatch.setattr(source, 'rows', lambda *_: iter(blocks))
    write(source, tmp_path / 'out.pt')
    found = torch.load(tmp_path / 'out.pt', weights_only=True)
    assert torch.equal(found['state']['model']['w'], whole)


def test_archive_is_a_valid_zip_with_aligned_tensors(tmp_path):
    tensors = various()
    write(source_of(tensors, tmp_path / 'source.pt'), tmp_path / 'out.pt')
    with zipfile.ZipFile(tmp_path / 'out.pt') as archive:
        assert archive.testzip() is None
    with (tmp_path / 'out.pt').open('rb') as file:
        content = load_structure(file)
    offsets = [
        tensor.untyped_storage()._checkpoint_offset
        for tensor in content['state']['model'].values()
    ]
    assert len(set(offsets)) == len(tensors)
    assert all(offset % 64 == 0 for offset in offsets)


def test_same_checkpoint_gives_the_same_bytes(tmp_path, monkeypatch):
    source = source_of(various(), tmp_path / 'source.pt')
    write(source, tmp_path / 'a.pt')
    monkeypatch.setattr('time.time', lambda: 1e9)
    write(source, tmp_path / 'b.pt')
    data = (tmp_path / 'a.pt').read_bytes()
    assert data == (tmp_path / 'b.pt').read_bytes()


def test_large_tensors_and_offsets(tmp_path, monkeypatch):
    # As if 1000 bytes were what a header without zip64 can hold (2 GiB).
    monkeypatch.setattr(zipfile, 'ZIP64_LIMIT', 1000)
    tensors = {f'{i}': torch.randn(i * 100 + 1) for i in range(5)}
    write(source_of(tensors, tmp_path / 'source.pt'), tmp_path / 'out.pt')
    found = torch.load(tmp_path / 'out.pt', weights_only=True)
    reader = MonolithicReader(str(tmp_path / 'out.pt'))
    for name, tensor in tensors.items():
        assert torch.equal(found['state']['model'][name], tensor)
        assert torch.equal(reader.read(name, 0, 0, len(tensor)), tensor)
    with zipfile.ZipFile(tmp_path / 'out.pt') as archive:
        assert archive.testzip() is None
        # Extra field 1 is zip64's.
        assert b'\1\0' in archive.getinfo('archive/data/4').extra


def test_missing_rows_are_an_error(tmp_path, monkeypatch):
    source = source_of({'w': torch.randn(6, 5)}, tmp_path / 'source.pt')
    monkeypatch.setattr(source, 'rows', lambda *_: iter([torch.zeros(5, 5)]))
    with pytest.raises(CheckpointError, match='w of .* read as 5 rows'):
        with new_output(tmp_path / 'out.pt') as path:
            write(source, path)
    assert os.listdir(tmp_path) == ['source.pt']


def test_full_disk(tmp_path):
    source = source_of({'w': torch.zeros(2**18)}, tmp_path / 'source.pt')
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**19, limits[1]))
    try:
        with pytest.raises(CheckpointError, match='File too large.*Fix: free'):
            with new_output(tmp_path / 'out.pt') as path:
                write(source, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(tmp_path) == ['source.pt']
