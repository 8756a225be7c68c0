"""Opens a checkpoint, whatever its format, for lazy reading.

No pickle that a checkpoint carries is ever executed: tensors are read with
``weights_only=True``, and a sharded folder's ``.metadata`` with an unpickler
that knows only the classes such a file needs.
"""

import os

from foundry_upcycle.checkpoints.base import Checkpoint
from foundry_upcycle.checkpoints.huggingface.gguf import GGUFReader
from foundry_upcycle.checkpoints.huggingface.gguf_container import is_gguf
from foundry_upcycle.checkpoints.huggingface.gguf_file import gguf_parts
from foundry_upcycle.checkpoints.huggingface.reader import (
    HuggingFaceReader,
    is_huggingface_folder,
    weight_files,
)
from foundry_upcycle.checkpoints.readers.monolithic import MonolithicReader
from foundry_upcycle.checkpoints.readers.sharded import (
    ShardedReader,
    shard_files,
)
from foundry_upcycle.errors import CheckpointError

__all__ = ['checkpoint_files', 'open_checkpoint']


def open_checkpoint(path: str) -> Checkpoint:
    """Opens a local checkpoint.

    Args:
        path: Composer's monolithic ``.pt`` file or sharded (DCP) folder, a
            Hugging Face folder with safetensors, or a GGUF file.

    Raises:
        CheckpointError: It is missing, damaged, none of these formats, or
            would execute code to be read.
        ConfigError: MPT can't express the Hugging Face model.
    """
    try:
        if is_huggingface_folder(path):
            return HuggingFaceReader(path)
        if os.path.isdir(path):
            _refuse_other_folders(path)
            return ShardedReader(path)
        if os.path.isfile(path):
            return (GGUFReader if is_gguf(path) else MonolithicReader)(path)
    except PermissionError as error:
        raise CheckpointError(
            path,
            f'it can not be opened ({error}).',
            'make it one that you may read.',
        ) from error
    raise CheckpointError(
        path,
        'there is no such file or folder.',
        'name a Composer checkpoint (.pt or sharded folder), a Hugging Face '
        'folder or a GGUF file.',
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


def checkpoint_files(path: str) -> list[str]:
    """Names of a checkpoint's files, in its folder, that a conversion reads."""
    if is_huggingface_folder(path):
        return sorted(weight_files(path))
    if os.path.isdir(path):
        return ['.metadata', *sorted(shard_files(path))]
    return [os.path.basename(part) for part in gguf_parts(path)]
