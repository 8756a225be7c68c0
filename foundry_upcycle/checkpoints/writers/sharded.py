"""Writes a folder as ``torch.distributed.checkpoint`` (DCP) does.

``dcp.save`` itself holds every tensor of a file until the file ends, and each
tensor whole. Here torch plans, and the files are written block by block.
"""

import io
import pickle
from pathlib import Path
from typing import Iterable, Mapping, Optional

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import SavePlanner, WriteItem

from foundry_upcycle.checkpoints.base import Checkpoint, TensorInfo
from foundry_upcycle.checkpoints.companions import Companions
from foundry_upcycle.checkpoints.writers.monolithic import (
    composer_state,
    streamed,
    write_archive,
)
from foundry_upcycle.checkpoints.writers.output import Progress, stored_tensors

__all__ = ['write_sharded']

_PREFIX = 'state.model.'


def write_sharded(
    checkpoint: Checkpoint,
    folder: Path,
    dtype: Optional[torch.dtype],
    progress: Progress,
    companions: Optional[Companions] = None,
) -> None:
    """Writes what a run's ``load_path`` takes with ``load_weights_only``.

    One file holds config and tokenizer, and one each tensor; any number of ranks loads
    them.

    Args:
        checkpoint: What to write; it is read once, block after block.
        folder: The folder; it must not hold a checkpoint.
        dtype: Of floating-point tensors; None keeps each one's own.
        progress: Is told the bytes of each block.
        companions: Tokenizer and generation config; None: the checkpoint's.

    Raises:
        CheckpointError: The checkpoint gives other rows than it promised.
        OSError: A file can't be written.
    """
    tensors = stored_tensors(checkpoint, dtype)
    companions = companions or checkpoint.companions()
    planner, items, metadata = _plan(checkpoint, tensors, companions)
    folder.mkdir(parents=True, exist_ok=True)
    stored = _write_values(folder, planner, items)
    for i, item in enumerate(items):
        if item.tensor_data is not None:
            name = item.index.fqn.removeprefix(_PREFIX)
            path = folder / f'__0_{i + 1}.distcp'
            tensor = streamed(checkpoint, name, tensors[name], progress)
            write_archive(path, tensor)
            stored[item.index] = _StorageInfo(path.name, 0, path.stat().st_size)
    metadata.storage_data = stored
    # Last: without it, the folder is no checkpoint.
    with (folder / '.metadata').open('wb') as file:
        pickle.dump(metadata, file)


def _plan(
    checkpoint: Checkpoint,
    tensors: Mapping[str, TensorInfo],
    companions: Companions,
) -> tuple[SavePlanner, list[WriteItem], Metadata]:
    planner = DefaultSavePlanner()
    empty = {
        name: torch.empty(info.shape, dtype=info.dtype, device='meta')
        for name, info in tensors.items()
    }
    planner.set_up_planner(
        composer_state(checkpoint, empty, companions, files_as_text=True),
        is_coordinator=True,
    )
    plan = planner.create_local_plan()
    _, metadata = planner.create_global_plan([plan])
    return planner, plan.items, metadata


def _write_values(
    folder: Path,
    planner: SavePlanner,
    items: Iterable[WriteItem],
) -> dict[MetadataIndex, _StorageInfo]:
    """Writes what is no tensor, config and tokenizer, to the first file."""
    stored = {}
    path = folder / '__0_0.distcp'
    with path.open('wb') as file:
        for item in items:
            value = planner.resolve_data(item)
            if isinstance(value, io.BytesIO):
                offset = file.tell()
                length = file.write(value.getbuffer())
                stored[item.index] = _StorageInfo(path.name, offset, length)
    return stored
