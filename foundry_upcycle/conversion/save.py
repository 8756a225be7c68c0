"""Writes a checkpoint whole or not at all, with progress and manifest."""

import os
from pathlib import Path
from typing import Callable, Optional

import torch
from tqdm import tqdm

from foundry_upcycle.checkpoints.base import Checkpoint
from foundry_upcycle.checkpoints.writers.output import (
    Progress,
    check_free_space,
    new_output,
)
from foundry_upcycle.conversion.manifest import Provenance, manifest_path
from foundry_upcycle.errors import CheckpointError

__all__ = ['Writer', 'n_bytes', 'save']

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
    n_bytes: int,
    provenance: Provenance,
    overwrite: bool,
) -> None:
    """Runs ``write``; what it writes is at ``out`` when it is complete.

    Args:
        out: The file or folder to make.
        write: Writes it, to another path.
        n_bytes: How much that will be.
        provenance: Goes into the folder, or beside the file.
        overwrite: Whether ``out`` may exist.

    Raises:
        CheckpointError: ``out`` exists, or can't be written. What was there
            still is.
    """
    _refuse_source(out, provenance.source)
    _refuse_foreign_folder(out)
    with new_output(out, overwrite) as partial:
        check_free_space(partial, n_bytes)
        provenance.start()
        with tqdm(
                total=n_bytes,
                desc=provenance.command,
                unit='B',
                unit_scale=True,
                delay=1,
        ) as bar:
            write(partial, bar.update)
        if partial.is_dir():
            provenance.write(manifest_path(partial))
        else:
            # Better none for a moment than that of another file.
            manifest_path(out).unlink(missing_ok=True)
    if os.path.isfile(out):
        provenance.write(manifest_path(out))


def _refuse_foreign_folder(out: str) -> None:
    is_ours = manifest_path(out).is_file()
    if os.path.isdir(out) and os.listdir(out) and not is_ours:
        raise CheckpointError(
            out,
            'it exists, and foundry-upcycle did not write it (it holds no '
            'manifest.json).',
            'choose another output; --overwrite replaces a whole folder.',
        )


def _refuse_source(out: str, source: str) -> None:
    real_out, real_source = os.path.realpath(out), os.path.realpath(source)
    if os.path.commonpath([real_out, real_source]) in (real_out, real_source):
        raise CheckpointError(
            out,
            f'it is, holds or lies in the source {source}.',
            'write somewhere else.',
        )
