"""Archives and metadata that say other than what is stored."""

import pickle
import zipfile
from pathlib import Path
from typing import Any, Callable

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata

from foundry_upcycle.checkpoints.open import open_checkpoint
from foundry_upcycle.errors import CheckpointError

TENSORS = {
    'a': torch.arange(12.0).reshape(4, 3),
    'b': torch.arange(100.0, 112.0).reshape(4, 3),
}


@pytest.fixture
def archive(tmp_path) -> Path:
    torch.save({'state': {'model': TENSORS}}, tmp_path / 'dense.pt')
    return tmp_path / 'dense.pt'


def rezip(
    path: Path,
    edit: Callable[[str, bytes], bytes] = lambda _, data: data,
    compression: int = zipfile.ZIP_STORED,
) -> None:
    """Packs an archive anew, as zip would."""
    with zipfile.ZipFile(path) as source:
        records = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(path, 'w', compression) as target:
        for name, data in records.items():
            target.writestr(name, edit(name.partition('/')[2], data))


def read_all(path: Path) -> dict[str, torch.Tensor]:
    reader = open_checkpoint(str(path))
    return {
        name: reader.read(name, 0, 0, info.shape[0])
        for name, info in reader.tensors.items()
    }


def test_an_archive_packed_anew_is_read(archive):
    # Its tensors are no longer where torch.save puts them.
    rezip(archive)
    found = read_all(archive)
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], TENSORS[name]) for name in found)


def test_a_compressed_archive_is_refused(archive):
    rezip(archive, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match='records are compressed.*save'):
        open_checkpoint(str(archive))


@pytest.mark.parametrize('n_bytes', [0, 44, 52])
def test_a_record_of_another_length_is_refused(archive, n_bytes):

    def edit(name: str, data: bytes) -> bytes:
        return data.ljust(n_bytes, b'.')[:n_bytes] if name == 'data/0' else data

    rezip(archive, edit)
    with pytest.raises(CheckpointError, match=f'data/0 has {n_bytes} b.* 48'):
        open_checkpoint(str(archive))


def test_a_record_that_holds_another_is_refused(archive):
    data = archive.read_bytes()
    with zipfile.ZipFile(archive) as opened:
        first, second = (
            opened.getinfo(f'dense/data/{key}').header_offset for key in '01'
        )
    # The directory's second entry points to the first record.
    at = data.rindex(second.to_bytes(4, 'little') + b'dense/data/1')
    archive.write_bytes(
        data[:at] + first.to_bytes(4, 'little') + data[at + 4:],
    )
    with pytest.raises(CheckpointError, match='not where it should be'):
        open_checkpoint(str(archive))


def test_a_changed_pickle_is_refused(archive):
    data = archive.read_bytes()
    # The name of the model's second tensor.
    archive.write_bytes(data.replace(b'X\1\0\0\0b', b'X\1\0\0\0c'))
    with pytest.raises(CheckpointError, match='checksum of .* data.pkl'):
        open_checkpoint(str(archive))


def test_an_archive_without_checksums_is_read(archive):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({'state': {'model': TENSORS}}, archive)
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(read_all(archive)['b'], TENSORS['b'])


def test_a_sparse_tensor_is_refused(archive):
    sparse = {'a': TENSORS['a'].to_sparse()}
    torch.save({'state': {'model': sparse}}, archive)
    with pytest.raises(CheckpointError, match='dense.pt: .*sparse'):
        open_checkpoint(str(archive))
    # Nothing is left of it for the next load in this process.
    assert torch.load(archive)['state']['model']['a'].is_sparse


@pytest.mark.parametrize(
    'name',
    [
        'module.a.b',
        '_fsdp_wrapped_module.a._fsdp_wrapped_module.b',
        '_orig_mod.a.b',
        'a._checkpoint_wrapped_module.b',
        '_orig_mod.module._fsdp_wrapped_module.a.b',
    ],
)
@pytest.mark.parametrize('kind', ['pt', 'dcp'])
@pytest.mark.filterwarnings('ignore::UserWarning')
def test_names_of_wrappers_are_read_as_plain_ones(name, kind, tmp_path):
    model = {name: TENSORS['a']}
    if kind == 'pt':
        torch.save({'state': {'model': model}}, tmp_path / 'dense')
    else:
        dcp.save({'state': {'model': model}}, checkpoint_id=tmp_path / 'dense')
    found = read_all(tmp_path / 'dense')
    assert found.keys() == {'a.b'}
    assert torch.equal(found['a.b'], TENSORS['a'])


def test_two_tensors_of_one_plain_name_are_refused(tmp_path):
    model = {'a': TENSORS['a'], '_orig_mod.a': TENSORS['b']}
    torch.save({'state': {'model': model}}, tmp_path / 'dense.pt')
    with pytest.raises(CheckpointError, match='two of its tensors are a'):
        open_checkpoint(str(tmp_path / 'dense.pt'))


@pytest.fixture
@pytest.mark.filterwarnings('ignore::UserWarning')
def folder(tmp_path) -> Path:
    dcp.save({'state': {'model': TENSORS}}, checkpoint_id=tmp_path / 'dense')
    return tmp_path / 'dense'


def edit_metadata(folder: Path, edit: Callable[[Any, list], None]) -> None:
    """Calls ``edit`` with the metadata and the chunks of tensor a."""
    path = folder / '.metadata'
    metadata = pickle.loads(path.read_bytes())
    edit(metadata, metadata.state_dict_metadata['state.model.a'].chunks)
    path.write_bytes(pickle.dumps(metadata))


def chunk(offsets: tuple[int, ...], sizes: tuple[int, ...]) -> Any:
    return ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))


def set_chunks(*chunks: Any) -> Callable[[Any, list], None]:
    """Chunks that are said to be stored where all of a or of b is."""

    def edit(metadata: Any, found: list) -> None:
        found[:] = chunks
        storage = metadata.storage_data
        places = {index.fqn[-1]: info for index, info in storage.items()}
        (of_a, ) = (index for index in storage if index.fqn[-1] == 'a')
        del storage[of_a]
        for each, place in zip(chunks, 'ab', strict=False):
            index = type(of_a)(of_a.fqn, each.offsets)
            storage[index] = places[place]

    return edit


def set_dtype(metadata: Any, _: list) -> None:
    a = metadata.state_dict_metadata['state.model.a']
    a.properties.dtype = torch.int32


def share_bytes(metadata: Any, _: list) -> None:
    storage = metadata.storage_data
    a, b = storage
    storage[a].offset, storage[a].length = storage[b].offset, 100


@pytest.mark.parametrize(
    'edit,message',
    [
        (set_chunks(chunk((0, 0), (3, 3))), 'chunks of .*a leave holes'),
        (set_chunks(chunk((1, 0), (4, 3))), 'chunks of .*a leave holes'),
        (set_chunks(chunk((0, ), (12, ))), 'chunks of .*a leave holes'),
        (
            set_chunks(chunk((0, 0), (2, 3)), chunk((1, 0), (2, 3))),
            'the same bytes|leave holes, overlap',
        ),
        (set_chunks(chunk((0, 0), (10**9, 3))), 'larger than what is stored'),
        (share_bytes, 'the same bytes of .* are two things'),
        (set_dtype, 'bytes of a are damaged .it is not a torch.int32'),
    ],
    ids=[
        'hole',
        'beyond',
        'dims',
        'overlap',
        'large',
        'shared',
        'dtype',
    ],
)
@pytest.mark.filterwarnings('ignore::UserWarning')
def test_metadata_that_is_not_of_the_tensors_is_refused(folder, edit, message):
    edit_metadata(folder, edit)
    with pytest.raises(CheckpointError, match=message):
        read_all(folder)


@pytest.mark.filterwarnings('ignore::UserWarning')
def test_an_index_of_the_pickles_memo_costs_no_memory(folder):
    # 2^32 - 1 as the place of an object: in C, an array of 2^32 pointers.
    (folder / '.metadata').write_bytes(b'\x80\x04Nr\xff\xff\xff\xff.')
    with pytest.raises(CheckpointError, match='metadata: it is damaged'):
        open_checkpoint(str(folder))
