"""Mends what a training leaves that is killed while it saves."""

import os
import re
import zipfile
from pathlib import Path

from foundry_upcycle.errors import CheckpointError

__all__ = ['mend_checkpoints']

# Composer's default names, and others that end alike: ep0-ba500-rank0.pt.
_CHECKPOINT = re.compile(r'.*ba(\d+)-rank0\.pt')


def mend_checkpoints(folder: Path, link_name: str) -> None:
    """Lets a run go on from its newest complete checkpoint.

    Composer writes a checkpoint in place and links ``link_name`` to it
    afterwards. Killed in between, it refuses to go on: a checkpoint later than
    the one that it resumes from is in its way (its
    ``ensure_folder_has_no_conflicting_files``). So incomplete ones are removed,
    and the newest of the others is linked.

    Sharded checkpoints stay as they are: they are folders, ``ep0-ba500``, whose
    names Composer's check does not match. So does a folder with files of
    further ranks, where what is complete on this one may not be on them.

    Args:
        folder: A run's checkpoints. No process may be at work on it.
        link_name: What the link to its newest is called.

    Raises:
        CheckpointError: One can't be opened.
    """
    if any(folder.glob('*-rank[1-9]*.pt')):
        return
    steps = {
        path: int(match[1])
        for path in folder.glob('*.pt')
        if (match := _CHECKPOINT.fullmatch(path.name))
    }
    complete = [path for path in steps if _is_complete(path)]
    link = folder / link_name
    if complete:
        _link(link, max(complete, key=lambda path: steps[path]).name)
    for path in steps.keys() - complete:
        path.unlink()
        if link.is_symlink() and os.readlink(link) == path.name:
            link.unlink()


def _is_complete(path: Path) -> bool:
    """Whether it has the directory of a zip file, which is written last."""
    # Of a path that it can't open, is_zipfile says the same as of a broken
    # file, which goes.
    try:
        with path.open('rb') as file:
            return zipfile.is_zipfile(file)
    except OSError as error:
        raise CheckpointError(
            path,
            f"it can't be opened ({error}).",
            'see that its disk is there, or remove it.',
        ) from error


def _link(link: Path, target: str) -> None:
    if link.is_symlink() and os.readlink(link) == target:
        return  # Its time tells which answers are newer.
    unfinished = link.with_name(f'unfinished-{link.name}')
    unfinished.unlink(missing_ok=True)
    unfinished.symlink_to(target)
    unfinished.replace(link)
