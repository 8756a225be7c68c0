import errno
import os
import pickle
import shutil
from pathlib import Path

import pytest
import tiny
import torch
import torch.distributed.checkpoint as dcp

from foundry_upcycle.checkpoints.open import open_checkpoint
from foundry_upcycle.checkpoints.writers.sharded import write_sharded
from foundry_upcycle.conversion.export_hf import export_hf
from foundry_upcycle.errors import CheckpointError


class Exploit:
    """A pickle that leaves a file when it is loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path), )


@pytest.fixture(scope='module')
def weights() -> dict[str, torch.Tensor]:
    return dict(tiny.build_dense().state_dict())


@pytest.fixture
def monolithic(weights, tmp_path) -> str:
    path = tmp_path / 'dense.pt'
    torch.save({'state': {'model': weights}}, path)
    return str(path)


@pytest.fixture
def sharded(weights, tmp_path) -> str:
    path = tmp_path / 'ep0-ba1'
    dcp.save({'state': {'model': weights}}, checkpoint_id=path)
    return str(path)


@pytest.mark.parametrize('kind', ['monolithic', 'sharded'])
def test_reads_tensors_by_name_and_slice(kind: str, weights, request):
    reader = open_checkpoint(request.getfixturevalue(kind))
    assert reader.tensors.keys() == weights.keys()
    for name, tensor in weights.items():
        assert reader.tensors[name] == (tuple(tensor.shape), tensor.dtype)
        for dim in range(tensor.ndim):
            n = tensor.shape[dim]
            for start, stop in ((0, n), (n // 3, n // 2), (n - 1, n)):
                assert torch.equal(
                    reader.read(name, dim, start, stop),
                    tensor.narrow(dim, start, stop - start),
                )


def test_full_composer_checkpoint_is_read_without_its_pickles(tmp_path):
    path = tiny.train_and_save_dense(tmp_path)
    expected = torch.load(path, weights_only=False)['state']['model']
    reader = open_checkpoint(path)
    assert reader.tensors.keys() == expected.keys()
    name = 'model.transformer.blocks.0.ffn.up_proj.weight'
    assert torch.equal(reader.read(name, 0, 0, 5), expected[name][:5])


def test_prefixes_of_wrappers_are_removed(weights, tmp_path):
    path = tmp_path / 'ddp.pt'
    wrapped = {f'module.{name}': t for name, t in weights.items()}
    torch.save({'state': {'model': wrapped}}, path)
    assert open_checkpoint(str(path)).tensors.keys() == weights.keys()


def test_monolithic_pickle_is_not_executed(weights, tmp_path):
    trace = tmp_path / 'executed'
    content = {'state': {'model': weights, 'callbacks': Exploit(trace)}}
    torch.save(content, tmp_path / 'bad.pt')
    with pytest.raises(
            CheckpointError,
            match='only by executing posix.mkdir.*Fix: save .*save_weights_only',
    ):
        open_checkpoint(str(tmp_path / 'bad.pt'))
    assert not trace.exists()


def test_sharded_metadata_is_not_executed(sharded, tmp_path):
    trace = tmp_path / 'executed'
    Path(sharded, '.metadata').write_bytes(pickle.dumps(Exploit(trace)))
    with pytest.raises(CheckpointError, match='mkdir is not allowed'):
        open_checkpoint(sharded)
    assert not trace.exists()


def test_sharded_tensor_bytes_are_not_executed(sharded, tmp_path):
    # The stored bytes of one tensor are replaced by a pickle of the same
    # length.
    trace = tmp_path / 'executed'
    shard = next(Path(sharded).glob('*.distcp'))
    payload = pickle.dumps(Exploit(trace))
    data = shard.read_bytes()
    shard.write_bytes(payload.ljust(1000, b'.') + data[1000:])
    reader = open_checkpoint(sharded)
    failed = 0
    for name, info in reader.tensors.items():
        try:
            reader.read(name, 0, 0, info.shape[0])
        except CheckpointError as error:
            assert 'are damaged' in str(error)
            failed += 1
    assert failed == 1
    assert not trace.exists()


def test_missing_source(tmp_path):
    with pytest.raises(CheckpointError, match='no such file or folder.*Fix: '):
        open_checkpoint(str(tmp_path / 'absent.pt'))


def test_an_id_of_a_hub_is_called_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
            CheckpointError,
            match='ids .* not taken.*download meta-llama/Llama-3.2-1B --local',
    ):
        open_checkpoint('meta-llama/Llama-3.2-1B')


@pytest.mark.parametrize(
    'name',
    [
        'model-00001-of-00002.safetensors', '.metadata', '0.distcp',
        'config.json'
    ],
)
def test_a_file_of_a_folder_is_called_so(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=f'name the folder: {tmp_path}'):
        open_checkpoint(str(tmp_path / name))


@pytest.mark.parametrize('keep', [0, 100, 10_000, -1])
def test_truncated_file(keep: int, monolithic: str):
    data = Path(monolithic).read_bytes()
    Path(monolithic).write_bytes(data[:keep])
    with pytest.raises(CheckpointError, match='dense.pt: it is truncated'):
        open_checkpoint(monolithic)


def test_file_of_another_tool(tmp_path):
    torch.save({'weight': torch.zeros(2)}, tmp_path / 'other.pt')
    with pytest.raises(CheckpointError, match='no state.model'):
        open_checkpoint(str(tmp_path / 'other.pt'))


def test_folder_of_another_tool(tmp_path):
    dcp.save({'weight': torch.zeros(2)}, checkpoint_id=tmp_path / 'other')
    with pytest.raises(CheckpointError, match='lists no state.model'):
        open_checkpoint(str(tmp_path / 'other'))


def test_folder_without_metadata(tmp_path):
    with pytest.raises(CheckpointError, match='no .metadata file.*ep0-ba100'):
        open_checkpoint(str(tmp_path))


def test_missing_shard(sharded: str):
    next(Path(sharded).glob('*.distcp')).unlink()
    with pytest.raises(CheckpointError, match='distcp: it is missing'):
        open_checkpoint(sharded)


def test_truncated_shard(sharded: str):
    shard = next(Path(sharded).glob('*.distcp'))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(
            CheckpointError,
            match=r'shard is truncated: \d+ bytes, \d+ needed',
    ):
        open_checkpoint(sharded)


def test_truncated_metadata(sharded: str):
    file = Path(sharded, '.metadata')
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match='.metadata: it is damaged'):
        open_checkpoint(sharded)


def test_metadata_of_something_else(sharded: str):
    Path(sharded, '.metadata').write_bytes(pickle.dumps({'a': 1}))
    with pytest.raises(CheckpointError, match="it holds <class 'dict'>"):
        open_checkpoint(sharded)


def test_symlink_to_a_folder_is_followed(sharded: str, tmp_path):
    link = tmp_path / 'latest-rank0.pt'
    link.symlink_to(sharded)
    assert open_checkpoint(str(link)).tensors
    shutil.rmtree(sharded)
    with pytest.raises(CheckpointError, match='no such file'):
        open_checkpoint(str(link))


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
@pytest.mark.parametrize('kind', ['monolithic', 'sharded', 'huggingface'])
def test_numbers_that_are_none_are_warned_of_once(tmp_path, kind, value):
    name = 'model.transformer.blocks.1.ffn.down_proj.weight'
    model = tiny.build_dense()
    model.state_dict()[name][3, 5] = value
    source = tiny.save_dense(model, tmp_path / 'dense.pt')
    checkpoint = open_checkpoint(source)
    if kind == 'sharded':
        write_sharded(checkpoint, tmp_path / 'dcp', None, lambda n: None)
        checkpoint = open_checkpoint(str(tmp_path / 'dcp'))
    elif kind == 'huggingface':
        export_hf(source, str(tmp_path / 'hf'))
        checkpoint = open_checkpoint(str(tmp_path / 'hf'))
    is_mpt = kind != 'huggingface'
    named = name if is_mpt else 'model.layers.1.mlp.down_proj.weight'
    with pytest.warns(UserWarning) as warned:
        for other, info in checkpoint.tensors.items():
            for _ in range(2):
                checkpoint.read(other, 0, 0, info.shape[0])
    found = [str(w.message) for w in warned if 'infinite' in str(w.message)]
    assert found == [
        f'{checkpoint.path}: {named} has NaN or infinite values; what is made '
        'of it will have them too.',
    ]


@pytest.mark.parametrize(
    'name,message',
    [
        ('checkpoint.pt', 'name .*checkpoint.pt'),
        ('adapter_config.json', 'it holds an adapter'),
        ('README.md', 'has no .metadata file.*or a Hugging Face folder'),
    ],
)
def test_other_folders_are_refused(tmp_path, name, message):
    (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(str(tmp_path))


def test_a_gguf_file_is_known_by_its_start(tmp_path):
    (tmp_path / 'model.bin').write_bytes(b'GGUF and more')
    with pytest.raises(CheckpointError, match='it is not a GGUF file, or dama'):
        open_checkpoint(str(tmp_path / 'model.bin'))


def test_a_file_that_shrinks_is_named(tmp_path):
    path = tiny.save_dense(tiny.build_dense(), tmp_path / 'dense.pt')
    checkpoint = open_checkpoint(path)
    os.truncate(path, 4096)
    with pytest.raises(CheckpointError,
                       match='dense.pt: it changed while it was read'):
        for name, info in checkpoint.tensors.items():
            checkpoint.read(name, 0, 0, info.shape[0])


def test_metadata_that_names_other_folders_is_refused(tmp_path):
    dcp.save(
        {'state': {
            'model': tiny.build_dense().state_dict()
        }},
        checkpoint_id=tmp_path,
    )
    with (tmp_path / '.metadata').open('rb') as stream:
        metadata = pickle.load(stream)
    for entry in metadata.storage_data.values():
        entry.relative_path = '../' + entry.relative_path
    with (tmp_path / '.metadata').open('wb') as stream:
        pickle.dump(metadata, stream)
    with pytest.raises(CheckpointError, match='not a file of this folder'):
        open_checkpoint(str(tmp_path))


@pytest.mark.parametrize('kind', ['file', 'folder'])
def test_what_may_not_be_read(kind: str, tmp_path, monkeypatch):
    path = tmp_path / 'dense.pt'
    if kind == 'file':
        path.touch()
    else:
        path.mkdir()

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, 'Permission denied')

    monkeypatch.setattr('builtins.open', refuse)
    monkeypatch.setattr(os, 'listdir', refuse)
    with pytest.raises(CheckpointError, match='dense.pt: it cannot be opened'):
        open_checkpoint(str(path))


def test_a_shard_that_goes_is_named(sharded: str, tmp_path):
    folder = shutil.copytree(sharded, tmp_path / 'copy')
    checkpoint = open_checkpoint(str(folder))
    name = next(iter(checkpoint.tensors))
    for shard in folder.glob('*.distcp'):
        shard.unlink()
    for _ in range(2):
        with pytest.raises(
                CheckpointError,
                match='distcp: it changed while it was read .it was removed',
        ):
            checkpoint.read(name, 0, 0, 1)
