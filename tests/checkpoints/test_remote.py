"""Downloads, through Composer's real object-store client on a local store."""

import os
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import tiny
import torch
import torch.distributed.checkpoint as dcp
from composer.utils import file_helpers
from composer.utils.object_store import LibcloudObjectStore

from foundry_upcycle.checkpoints.open import open_checkpoint
from foundry_upcycle.checkpoints.remote import local_checkpoint
from foundry_upcycle.errors import CheckpointError

# What a download that is killed has begun with.
KILLED = """
import os, signal
from foundry_upcycle.files import scratch_folder
with scratch_folder('upcycling-'):
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def bucket(tmp_path, monkeypatch) -> Path:
    """A bucket on disk, under the URI scheme ``disk``."""
    folder = tmp_path / 'bucket'
    folder.mkdir()
    monkeypatch.setenv('DISK_KEY', str(tmp_path))
    monkeypatch.setitem(
        file_helpers.BACKEND_TO_OBJECT_STORE_FACTORY,
        'disk',
        lambda name, path: LibcloudObjectStore(
            provider='local',
            container=name,
            key_environ='DISK_KEY',
        ),
    )
    return folder


@pytest.fixture(scope='module')
def weights() -> dict[str, torch.Tensor]:
    return dict(tiny.build_dense().state_dict())


def read_all(path: str) -> dict[str, torch.Tensor]:
    reader = open_checkpoint(path)
    return {
        name: reader.read(name, 0, 0, info.shape[0]).clone()
        for name, info in reader.tensors.items()
    }


def test_local_path_is_used_in_place(tmp_path):
    with local_checkpoint(str(tmp_path / 'latest-rank{rank}.pt')) as path:
        assert path == str(tmp_path / 'latest-rank0.pt')


def test_monolithic_file(bucket: Path, weights):
    torch.save({'state': {'model': weights}}, bucket / 'dense.pt')
    with local_checkpoint('disk://bucket/dense.pt') as path:
        found = read_all(path)
    assert not os.path.exists(path)
    assert all(torch.equal(found[name], weights[name]) for name in weights)


def test_sharded_folder(bucket: Path, weights):
    folder = bucket / 'run' / 'ep0-ba1'
    dcp.save({'state': {'model': weights}}, checkpoint_id=folder)
    with local_checkpoint('disk://bucket/run/ep0-ba1') as path:
        found = read_all(path)
    assert all(torch.equal(found[name], weights[name]) for name in weights)


def test_symlink_object(bucket: Path, weights):
    torch.save({'state': {'model': weights}}, bucket / 'ba1.pt')
    (bucket / 'latest.symlink').write_text('ba1.pt')
    with local_checkpoint('disk://bucket/latest.symlink') as path:
        assert read_all(path).keys() == weights.keys()


def test_downloads_of_killed_runs_are_removed(
    bucket: Path,
    weights,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    torch.save({'state': {'model': weights}}, bucket / 'dense.pt')
    temporary = tmp_path / 'temporary'
    temporary.mkdir()
    monkeypatch.setattr(tempfile, 'tempdir', str(temporary))
    monkeypatch.setenv('TMPDIR', str(temporary))
    killed = subprocess.run([sys.executable, '-c', KILLED], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(os.listdir(temporary)) == 1
    with local_checkpoint('disk://bucket/dense.pt') as path:
        assert len(os.listdir(temporary)) == 1 and os.path.exists(path)
    assert os.listdir(temporary) == []


def test_no_room_for_a_download(bucket: Path, weights):
    torch.save({'state': {'model': weights}}, bucket / 'dense.pt')
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, hard))
    try:
        with pytest.raises(CheckpointError, match='set TMPDIR to a folder wi'):
            with local_checkpoint('disk://bucket/dense.pt'):
                raise AssertionError
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_missing_object(bucket: Path):
    with pytest.raises(
            CheckpointError,
            match='disk://bucket/absent.pt: it could not be downloaded',
    ):
        with local_checkpoint('disk://bucket/absent.pt'):
            pass


def test_unknown_store():
    with pytest.raises(CheckpointError, match='ftp://host/x.pt: .*cloud'):
        with local_checkpoint('ftp://host/x.pt'):
            pass


def test_unknown_placeholder():
    with pytest.raises(CheckpointError, match="placeholder 'run_name' has no"):
        with local_checkpoint('runs/{run_name}/latest.pt'):
            pass
