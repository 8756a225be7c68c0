"""A training that was killed while it saved goes on from what is complete."""

import os
from pathlib import Path

import pytest
import torch
from composer.core import Timestamp
from composer.utils import ensure_folder_has_no_conflicting_files

from foundry_upcycle.errors import CheckpointError
from foundry_upcycle.study.interrupted import mend_checkpoints

LINK = 'latest-rank0.pt'


def save(folder: Path, n_steps: int, share: float = 1.0, rank: int = 0) -> Path:
    """Saves a checkpoint; ``share`` of its bytes arrive."""
    path = folder / f'ep0-ba{n_steps}-rank{rank}.pt'
    torch.save({'weight': torch.arange(1000)}, path)
    content = path.read_bytes()
    path.write_bytes(content[:int(share * len(content))])
    return path


def link(folder: Path, target: str, name: str = LINK) -> Path:
    path = folder / name
    path.symlink_to(target)
    return path


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    """Of each name what it is on the disk, and since when."""
    return {
        path.name: (path.lstat().st_ino, path.lstat().st_mtime_ns)
        for path in folder.iterdir()
    }


def require_that_composer_goes_on(folder: Path, n_steps: int) -> None:
    """As its CheckpointSaver does at the start of a training."""
    ensure_folder_has_no_conflicting_files(
        folder,
        'ep{epoch}-ba{batch}-rank{rank}.pt',
        Timestamp(batch=n_steps),
    )


@pytest.mark.parametrize('share', [0, 0.5, 0.99])
def test_what_was_not_written_to_the_end_goes(tmp_path: Path, share: float):
    whole = save(tmp_path, 20)
    link(tmp_path, whole.name)
    before = contents(tmp_path)
    broken = save(tmp_path, 30, share)
    with pytest.raises(FileExistsError, match='ba30'):
        require_that_composer_goes_on(tmp_path, 20)
    mend_checkpoints(tmp_path, LINK)
    assert not broken.exists()
    assert contents(tmp_path) == before
    require_that_composer_goes_on(tmp_path, 20)


@pytest.mark.parametrize('linked', ['ep0-ba20-rank0.pt', None])
def test_what_was_written_and_not_linked_is_linked(tmp_path: Path, linked):
    save(tmp_path, 20)
    newest = save(tmp_path, 100)  # By number, not by name.
    if linked:
        link(tmp_path, linked)
    # Of another mending, that was killed.
    link(tmp_path, 'ep0-ba20-rank0.pt', f'unfinished-{LINK}')
    mend_checkpoints(tmp_path, LINK)
    assert os.readlink(tmp_path / LINK) == newest.name
    assert {path.name
            for path in tmp_path.iterdir()
           } == {LINK, 'ep0-ba20-rank0.pt', newest.name}
    require_that_composer_goes_on(tmp_path, 100)


def test_a_broken_file_that_is_linked(tmp_path: Path):
    # As the machine, not the process, ended.
    whole = save(tmp_path, 20)
    link(tmp_path, save(tmp_path, 30, share=0.5).name)
    mend_checkpoints(tmp_path, LINK)
    assert os.readlink(tmp_path / LINK) == whole.name
    whole.write_bytes(b'')
    mend_checkpoints(tmp_path, LINK)
    assert not contents(tmp_path)  # From the start.


def test_what_is_in_order_stays(tmp_path: Path):
    save(tmp_path, 20)
    link(tmp_path, save(tmp_path, 30).name)
    before = contents(tmp_path)
    mend_checkpoints(tmp_path, LINK)
    assert contents(tmp_path) == before
    mend_checkpoints(tmp_path / 'absent', LINK)


def test_sharded_checkpoints_stay(tmp_path: Path):
    for name in ('ep0-ba20', 'ep0-ba30'):
        (tmp_path / name).mkdir()
        (tmp_path / name / '__0_0.distcp').touch()
    link(tmp_path, 'ep0-ba20', 'latest-sharded-rank0')
    before = contents(tmp_path)
    mend_checkpoints(tmp_path, LINK)
    assert contents(tmp_path) == before
    require_that_composer_goes_on(tmp_path, 20)


def test_with_further_ranks_nothing_is_done(tmp_path: Path):
    link(tmp_path, save(tmp_path, 20).name)
    save(tmp_path, 30, share=0.5)
    save(tmp_path, 30, rank=1)
    before = contents(tmp_path)
    mend_checkpoints(tmp_path, LINK)
    assert contents(tmp_path) == before


def test_what_cant_be_opened_stays(tmp_path: Path):
    path = link(tmp_path, '/gone/ep0-ba20-rank0.pt', 'ep0-ba20-rank0.pt')
    match = "ba20-rank0.pt: it can't be opened .*Fix: see that its disk is ther"
    with pytest.raises(CheckpointError, match=match):
        mend_checkpoints(tmp_path, LINK)
    assert path.is_symlink()


def test_the_link_has_the_name_that_it_is_looked_for_by(tmp_path: Path):
    # On one GPU, of a YAML that says sharded.
    save(tmp_path, 20)
    newest = save(tmp_path, 30)
    path = link(tmp_path, 'ep0-ba20-rank0.pt', 'latest-sharded-rank0')
    mend_checkpoints(tmp_path, path.name)
    assert os.readlink(path) == newest.name
    assert not (tmp_path / LINK).exists()
