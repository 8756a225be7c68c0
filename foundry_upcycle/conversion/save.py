"""Writes a checkpoint whole or not at all, with progress and manifest."""

import os
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Iterator, Optional

import torch
from tqdm import tqdm

from foundry_upcycle.checkpoints.base import Checkpoint
from foundry_upcycle.checkpoints.writers.output import (
    Progress,
    absolute,
    check_free_space,
    new_output,
    refuse_existing,
    unwritable,
)
from foundry_upcycle.conversion.manifest import (
    Provenance,
    files_in,
    is_manifest,
    is_output,
    manifest_beside,
    manifest_path,
)
from foundry_upcycle.errors import CheckpointError
from foundry_upcycle.files import require_place

__all__ = ['Writer', 'check_output', 'n_bytes', 'save']

# Writes a file or folder at a path, and tells how many bytes as it goes.
Writer = Callable[[Path, Progress], None]


def n_bytes(checkpoint: Checkpoint, dtype: Optional[torch.dtype]) -> int:
    """Bytes of all tensors, in ``dtype`` or (None) in their own."""
    return sum(
        torch.Size(shape).numel() * (dtype or own).itemsize
        for shape, own in checkpoint.tensors.values()
    )


def save(
    out: str,
    write: Writer,
    total_bytes: int,
    provenance: Provenance,
    overwrite: bool,
    is_file: bool = False,
) -> None:
    """Runs ``write``; what it writes is at ``out`` when it is complete.

    Args:
        out: The file or folder to make.
        write: Writes it, to another path.
        total_bytes: How much that will be.
        provenance: Goes into the folder, or beside the file.
        overwrite: Whether ``out`` may exist.
        is_file: Whether it will be a file, with its manifest beside it.

    Raises:
        CheckpointError: ``out`` exists, or can't be written. What was there
            still is.
    """
    out = check_output(out, provenance.source, overwrite, is_file)
    beside = manifest_beside(out)
    with new_output(out, overwrite, beside) as partial:
        check_free_space(partial, total_bytes)
        provenance.start()
        with tqdm(
                total=total_bytes,
                desc=provenance.command,
                unit='B',
                unit_scale=True,
                delay=1,
        ) as bar:
            with _one_thread():
                write(partial, bar.update)
        if is_file:
            outputs = {os.path.basename(out): partial}
            provenance.write(outputs, partial.with_name('beside'))
        else:
            outputs = {name: partial / name for name in files_in(partial)}
            provenance.write(outputs, manifest_path(partial))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keeps torch to one thread.

    Its threads wait by spinning, in the way of those that hash and write.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check_output(
    out: str,
    source: str,
    overwrite: bool,
    is_file: bool = False,
) -> str:
    """Refuses an output that could not be put in its place, beforehand.

    Returns:
        Its absolute path.

    Raises:
        CheckpointError: It has no name, exists and may not be replaced, or it
            is, holds or lies in the source; or its manifest's place is taken.
    """
    out = absolute(out)
    _refuse_source(out, source)
    _refuse_foreign_folder(out)
    _refuse_foreign_manifest(out)
    refuse_existing(out, overwrite)
    if is_file:
        _require_place(manifest_beside(out))
    return out


def _require_place(file: Path) -> None:
    try:
        require_place(file)
    except OSError as error:
        raise unwritable(file, error) from error


def _refuse_foreign_folder(out: str) -> None:
    if os.path.isdir(out) and os.listdir(out) and not is_output(out):
        raise CheckpointError(
            out,
            'it exists, and holds what foundry-upcycle did not write (what its '
            'manifest.json does not list).',
            'choose another output; --overwrite replaces a whole folder.',
        )


def _refuse_foreign_manifest(out: str) -> None:
    path = manifest_beside(out)
    if os.path.lexists(path) and not is_manifest(path):
        raise CheckpointError(
            path,
            'it exists, is none of ours, and a manifest would replace it.',
            'choose another output, or move this file.',
        )


def _refuse_source(out: str, source: str) -> None:
    real_out, real_source = os.path.realpath(out), os.path.realpath(source)
    if os.path.commonpath([real_out, real_source]) in (real_out, real_source):
        raise CheckpointError(
            out,
            f'it is, holds or lies in the source {source}.',
            'write somewhere else.',
        )
