"""What a conversion keeps in memory does not grow with the checkpoint."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from foundry_upcycle.checkpoints.open import open_checkpoint
from foundry_upcycle.checkpoints.readers.monolithic import MonolithicReader
from foundry_upcycle.checkpoints.readers.sharded import ShardedReader
from foundry_upcycle.errors import CheckpointError

# ru_maxrss is a peak, and counts the mapped pages of files. Whatever a first
# conversion imports is not counted: one of a small checkpoint comes first.
PROGRAM = '''
import resource, shutil, sys
from pathlib import Path
import torch
from foundry_upcycle.checkpoints.base import Checkpoint, TensorInfo
from foundry_upcycle.checkpoints.open import open_checkpoint
from foundry_upcycle.checkpoints.writers.monolithic import write_monolithic
from foundry_upcycle.checkpoints.writers.safetensors import write_safetensors
from foundry_upcycle.checkpoints.writers.sharded import write_sharded

class Random(Checkpoint):
    """Rows of 64 KiB, one MiB a block."""
    path, model_config = 'random', {}

    def __init__(self, n_rows):
        info = TensorInfo((n_rows, 2**14), torch.float32)
        self.tensors = {f'w{i}': info for i in range(4)}

    def read(self, name, dim, start, stop):
        return torch.rand(stop - start, 2**14)

    def rows(self, name, start, stop):
        for first in range(start, stop, 16):
            yield self.read(name, 0, first, min(first + 16, stop))

def peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10

def convert(folder, n_rows, before=0):
    no_progress = lambda n_bytes: None
    folder.mkdir()
    write_monolithic(Random(n_rows), folder / 'a.pt', None, no_progress)
    source = open_checkpoint(str(folder / 'a.pt'))
    write_sharded(source, folder / 'a', None, no_progress)
    for name, dtype in (('a.pt', None), ('a', torch.bfloat16)):
        source = open_checkpoint(str(folder / name))
        out = folder / 'out'
        write_monolithic(source, out, dtype, no_progress)
        out.unlink()
        write_sharded(source, out, dtype, no_progress)
        shutil.rmtree(out)
        write_safetensors(source, out, {}, dtype, no_progress)
        shutil.rmtree(out)
        print(name, peak_mib() - before)

folder = Path(sys.argv[1])
convert(folder / 'small', 1)
convert(folder / 'large', int(sys.argv[2]), before=peak_mib())
'''


def test_peak_memory_of_conversions(tmp_path):
    n_rows = 1536  # 96 MiB a tensor, 384 MiB a checkpoint.
    result = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', PROGRAM, tmp_path, f'{n_rows}'],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    growth = [line.split() for line in result.stdout.splitlines()][-2:]
    assert [name for name, _ in growth] == ['a.pt', 'a']
    # A block of 64 MiB, and what malloc keeps of small buffers.
    for name, mib in growth:
        assert float(mib) < 150, name
    n_bytes = 4 * n_rows * 2**16
    assert (tmp_path / 'large' / 'a.pt').stat().st_size > n_bytes


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    shared = torch.randn(40, 30)
    return {
        'plain': torch.randn(300, 70),
        'transposed': torch.randn(50, 60).t(),
        'first': shared[:7],
        'columns': shared[:, 11:20],
        'reversed_cube': torch.randn(3, 4, 5).permute(2, 1, 0),
        'broadcast': torch.randn(1, 6).expand(5, 6),
        'half': torch.randn(33, 3).bfloat16(),
        'none': torch.empty(5, 0),
        'no_rows': torch.empty(0, 5),
    }


@pytest.mark.filterwarnings('ignore::UserWarning')
@pytest.mark.parametrize('kind', ['pt', 'dcp'])
def test_strided_and_shared_tensors(kind: str, tensors, tmp_path):
    content = {'state': {'model': tensors}}
    if kind == 'pt':
        torch.save(content, tmp_path / 'source')
    else:
        dcp.save(content, checkpoint_id=tmp_path / 'source')
    reader = open_checkpoint(str(tmp_path / 'source'))
    for name, tensor in tensors.items():
        for dim, n in enumerate(tensor.shape):
            for start, stop in ((0, n), (n // 3, n // 2), (n - n // 4, n)):
                found = reader.read(name, dim, start, stop)
                expected = tensor.narrow(dim, start, stop - start)
                assert found.dtype == expected.dtype
                assert torch.equal(found, expected), name


@pytest.mark.filterwarnings('ignore::UserWarning')
@pytest.mark.parametrize('kind', ['pt', 'dcp'])
def test_slices_beyond_the_tensor_are_an_error(kind: str, tmp_path):
    content = {'state': {'model': {'w': torch.zeros(4, 3)}}}
    if kind == 'pt':
        torch.save(content, tmp_path / 'source')
    else:
        dcp.save(content, checkpoint_id=tmp_path / 'source')
    reader = open_checkpoint(str(tmp_path / 'source'))
    for start, stop in ((0, 5), (3, 2), (5, 6)):
        with pytest.raises((IndexError, RuntimeError), match='start|length'):
            reader.read('w', 0, start, stop)


def rewrite(path: Path, record: str, old: bytes, new: bytes) -> None:
    """Replaces bytes of one of an archive's records."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, 'w') as archive:
        for name, data in records.items():
            if name.endswith(record):
                assert old in data
                data = data.replace(old, new)
            archive.writestr(name, data)


def test_tensors_saved_on_a_gpu(tmp_path):
    path = tmp_path / 'gpu.pt'
    tensor = torch.randn(5, 3)
    torch.save({'state': {'model': {'w': tensor}}}, path)
    # Pickled strings: opcode X, length, text.
    rewrite(path, 'data.pkl', b'X\3\0\0\0cpu', b'X\6\0\0\0cuda:0')
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match='CUDA'):
            torch.load(path, weights_only=True)
    assert torch.equal(MonolithicReader(str(path)).read('w', 0, 0, 5), tensor)


def test_tensor_beyond_the_end_of_the_file(tmp_path):
    path = tmp_path / 'short.pt'
    torch.save({'state': {'model': {'w': torch.ones(5, 3)}}}, path)
    # Pickled integers: opcode K, value.
    rewrite(path, 'data.pkl', b'K\x05K\x03', b'M\xff\xffK\x03')
    with pytest.raises(
            CheckpointError,
            match='the data of w is not in it.*Fix: copy it again',
    ):
        MonolithicReader(str(path))


def test_tensor_without_data(tmp_path):
    path = tmp_path / 'meta.pt'
    tensor = torch.ones(3, device='meta')
    torch.save({'state': {'model': {'w': tensor}}}, path)
    with pytest.raises(CheckpointError, match='the data of w is not in it'):
        MonolithicReader(str(path))


@pytest.mark.filterwarnings('ignore::UserWarning')
def test_chunk_that_is_another_tensor(tmp_path):
    for n in (2, 3):
        content = {'state': {'model': {'w': torch.ones(n)}}}
        dcp.save(content, checkpoint_id=tmp_path / f'{n}')
    shutil.copy(tmp_path / '2' / '.metadata', tmp_path / '3')
    reader = ShardedReader(str(tmp_path / '3'))
    with pytest.raises(CheckpointError,
                       match='distcp: the stored bytes of w are dam'):
        reader.read('w', 0, 0, 2)


def test_file_that_is_replaced_while_it_is_open(tmp_path):
    path, other = tmp_path / 'a.pt', tmp_path / 'b.pt'
    for file, value in ((path, 1.0), (other, 2.0)):
        torch.save({'state': {'model': {'w': torch.full((5, 3), value)}}}, file)
    reader = MonolithicReader(str(path))
    first = reader.read('w', 0, 0, 1)
    other.replace(path)
    assert torch.equal(reader.read('w', 0, 0, 5), torch.ones(5, 3))
    del reader
    assert torch.equal(first, torch.ones(1, 3))


def test_reader_closes_its_file(tmp_path):
    torch.save({'state': {'model': {'w': torch.ones(3)}}}, tmp_path / 'a.pt')
    before = len(os.listdir('/proc/self/fd'))
    reader = MonolithicReader(str(tmp_path / 'a.pt'))
    view = reader.read('w', 0, 0, 3)
    assert len(os.listdir('/proc/self/fd')) > before
    del reader, view
    assert len(os.listdir('/proc/self/fd')) == before


def test_file_of_another_byte_order(tmp_path):
    path = tmp_path / 'big.pt'
    torch.save({'state': {'model': {'w': torch.ones(3)}}}, path)
    rewrite(path, 'byteorder', b'little', b'big')
    with pytest.raises(
            CheckpointError,
            match='not a PyTorch file .its byte order is big',
    ):
        MonolithicReader(str(path))


def test_file_of_an_old_torch(tmp_path):
    path = tmp_path / 'old.pt'
    torch.save(
        {'state': {
            'model': {
                'w': torch.ones(3),
            },
        }},
        path,
        _use_new_zipfile_serialization=False,
    )
    with pytest.raises(CheckpointError, match='old.pt: it is truncated or not'):
        MonolithicReader(str(path))
