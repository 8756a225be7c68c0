"""Opens a checkpoint, whatever its format, for lazy reading.

No pickle that a checkpoint carries is ever executed: those of tensors are read
by torch's unpickler of ``weights_only=True``, and a sharded folder's
``.metadata`` by one that knows only the classes such a file needs.
"""

import os
import re

from foundry_upcycle.checkpoints.base import StoredCheckpoint
from foundry_upcycle.checkpoints.huggingface.gguf import GGUFReader
from foundry_upcycle.checkpoints.huggingface.gguf_container import is_gguf
from foundry_upcycle.checkpoints.huggingface.reader import (
    HuggingFaceReader,
    is_huggingface_folder,
)
from foundry_upcycle.checkpoints.readers.monolithic import MonolithicReader
from foundry_upcycle.errors import CheckpointError

__all__ = ['open_checkpoint', 'require_existing']

# Files that are a checkpoint only together with others of their folder.
_PART = re.compile(r'.*\.(safetensors|distcp|json)|\.metadata')
# What a hub calls a model.
_HUB_ID = re.compile(r'[\w-][\w.-]*/[\w-][\w.-]*')


def open_checkpoint(path: str) -> StoredCheckpoint:
    """Opens a local checkpoint.

    Args:
        path: Composer's monolithic ``.pt`` file or sharded (DCP) folder, a
            Hugging Face folder with safetensors, or a GGUF file.

    Raises:
        CheckpointError: It is missing, damaged, none of these formats, or
            would execute code to be read.
        ConfigError: MPT can't express the Hugging Face model.
    """
    require_existing(path)
    try:
        if is_huggingface_folder(path):
            return HuggingFaceReader(path)
        if os.path.isdir(path):
            _refuse_other_folders(path)
            from foundry_upcycle.checkpoints.readers.sharded import (
                ShardedReader,
            )
            return ShardedReader(path)
        return (GGUFReader if is_gguf(path) else MonolithicReader)(path)
    except OSError as error:
        raise CheckpointError(
            path,
            f'it cannot be opened ({error}).',
            'make it one that you may read.',
        ) from error


def require_existing(
    path: str,
    expected: str = 'a Composer checkpoint (.pt or sharded folder), a Hugging '
    'Face folder or a GGUF file',
) -> None:
    """Refuses what names no checkpoint.

    Args:
        path: What is named.
        expected: What could be, for the message.

    Raises:
        CheckpointError: There is nothing at ``path``, or a file that is only
            a part of a checkpoint.
    """
    if os.path.isfile(path) and _PART.fullmatch(os.path.basename(path)):
        raise CheckpointError(
            path,
            'it is one file of a folder.',
            f'name the folder: {os.path.dirname(path) or "."}.',
        )
    if os.path.exists(path):
        return
    if _HUB_ID.fullmatch(path):
        raise CheckpointError(
            path,
            'there is no such file or folder; ids of models on a hub are not '
            'taken.',
            f'if it is one, run `huggingface-cli download {path} --local-dir '
            'FOLDER`, and name FOLDER.',
        )
    raise CheckpointError(
        path,
        'there is no such file or folder.',
        f'name {expected}.',
    )


def _refuse_other_folders(path: str) -> None:
    names = set(os.listdir(path))
    if 'checkpoint.pt' in names:
        raise CheckpointError(
            path,
            'it holds a checkpoint, and is none (import-hf wrote it).',
            f'name {os.path.join(path, "checkpoint.pt")}.',
        )
    if 'adapter_config.json' in names:
        raise CheckpointError(
            path,
            'it holds an adapter, not a model.',
            'merge the adapter into its model, and save that.',
        )
    files = sorted(name for name in names if name.endswith('.gguf'))
    if files:
        raise CheckpointError(
            path,
            f'it holds GGUF files ({len(files)}), and is none.',
            f'name one: {os.path.join(path, files[0])}.',
        )
