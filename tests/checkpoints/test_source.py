"""Files that change, that may not be read, and that are not what they seem."""

import errno
import hashlib
import os
import shutil
from pathlib import Path
from typing import Callable

import pytest
import tiny_hf
import torch
import torch.distributed.checkpoint as dcp

from foundry_upcycle.checkpoints.open import open_checkpoint
from foundry_upcycle.checkpoints.source import SourceFiles
from foundry_upcycle.conversion.manifest import hash_files
from foundry_upcycle.errors import CheckpointError


def save_pt(path: Path, seed: int) -> None:
    torch.manual_seed(seed)
    model = {name: torch.randn(64, 64) for name in 'ab'}
    torch.save({'state': {'model': model}}, path)


def save_dcp(path: Path, seed: int) -> None:
    torch.manual_seed(seed)
    model = {name: torch.randn(64, 64) for name in 'ab'}
    dcp.save({'state': {'model': model}}, checkpoint_id=path)


def save_hf(path: Path, seed: int) -> None:
    tiny_hf.save_llama(path, seed)


def rename(new: Path, old: Path) -> None:
    old.rename(old.with_name('gone'))
    new.rename(old)


def overwrite(new: Path, old: Path) -> None:
    for source in [new] if new.is_file() else sorted(new.iterdir()):
        target = old / source.name if new.is_dir() else old
        with target.open('r+b') as stream:
            stream.write(source.read_bytes())


@pytest.mark.parametrize('replace', [rename, overwrite])
@pytest.mark.parametrize('save', [save_pt, save_dcp, save_hf])
@pytest.mark.filterwarnings('ignore::UserWarning')
def test_what_replaces_a_source_is_not_read(
    tmp_path,
    save: Callable[[Path, int], None],
    replace: Callable[[Path, Path], None],
):
    source, other = tmp_path / 'source', tmp_path / 'other'
    save(source, 0)
    save(other, 1)
    checkpoint = open_checkpoint(str(source))
    first, second, *_ = [n for n in checkpoint.tensors if n[-4:] != 'bias']
    expected = checkpoint.read(second, 0, 0, 2).clone()
    checkpoint.read(first, 0, 0, 2)
    replace(other, source)
    if save is save_pt and replace is rename:  # It is still open.
        assert torch.equal(checkpoint.read(second, 0, 0, 2), expected)
    else:
        with pytest.raises(CheckpointError, match='changed while it was read'):
            checkpoint.read(second, 0, 0, 2)
    with pytest.raises(CheckpointError, match='changed while it was read'):
        checkpoint.files.check()


def test_a_link_that_a_run_sets_anew_is_what_it_was(tmp_path):
    for seed in (0, 1):
        save_pt(tmp_path / f'ba{seed}.pt', seed)
    link = tmp_path / 'latest-rank0.pt'
    link.symlink_to('ba0.pt')
    checkpoint = open_checkpoint(str(link))
    link.unlink()
    link.symlink_to('ba1.pt')
    expected = torch.load(tmp_path / 'ba0.pt')['state']['model']['b']
    assert torch.equal(checkpoint.read('b', 0, 0, 64), expected)
    digest = hashlib.sha256((tmp_path / 'ba0.pt').read_bytes()).hexdigest()
    assert hash_files(checkpoint.files) == {'ba0.pt': digest}


@pytest.mark.parametrize(
    'save,name',
    [
        (save_pt, ''),
        (save_dcp, '.metadata'),
        (save_dcp, '__0_0.distcp'),
        (save_hf, 'config.json'),
        (save_hf, 'model.safetensors'),
    ],
)
@pytest.mark.filterwarnings('ignore::UserWarning')
class TestFilesThatAreNot:

    def test_a_pointer_of_git_lfs_is_called_so(self, tmp_path, save, name):
        save(tmp_path / 'source', 0)
        pointer = b'version https://git-lfs.github.com/spec/v1\noid sha256:0\n'
        (tmp_path / 'source' / name).write_bytes(pointer.ljust(10**6))
        with pytest.raises(CheckpointError, match='git-lfs.*`git lfs pull`'):
            checkpoint = open_checkpoint(str(tmp_path / 'source'))
            checkpoint.read('a', 0, 0, 1)

    def test_an_error_of_the_disk_is_not_called_damage(
        self,
        tmp_path,
        save,
        name,
        monkeypatch,
    ):
        save(tmp_path / 'source', 0)
        file = tmp_path / 'source' / name
        opened = Path.open

        def fail(self: Path, *args, **kwargs):
            if self == file:
                raise OSError(errno.EIO, 'Input/output error')
            return opened(self, *args, **kwargs)

        monkeypatch.setattr(Path, 'open', fail)
        with pytest.raises(CheckpointError,
                           match='be opened or read .Input/ou'):
            checkpoint = open_checkpoint(str(tmp_path / 'source'))
            checkpoint.read('a', 0, 0, 1)


def test_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / '.metadata')
    with pytest.raises(CheckpointError, match='.metadata: it is not a file'):
        open_checkpoint(str(tmp_path))


def test_times_of_reading_do_not_count(tmp_path):
    (tmp_path / 'a').write_bytes(b'text')
    files = SourceFiles(tmp_path)
    with files.open('a') as stream:
        assert stream.read() == b'text'
    os.utime(tmp_path / 'a', ns=(0, os.stat(tmp_path / 'a').st_mtime_ns))
    shutil.copy(tmp_path / 'a', tmp_path / 'b')
    files.check()
    assert files.n_bytes == {'a': 4}
