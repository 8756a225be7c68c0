"""Writes a Hugging Face folder with safetensors, block by block."""

import json
from pathlib import Path
from typing import Any, Mapping, Optional

import torch

from foundry_upcycle.checkpoints.base import Checkpoint, TensorInfo
from foundry_upcycle.checkpoints.writers.output import (
    Progress,
    stored_tensors,
    stream_tensor,
)
from foundry_upcycle.errors import CheckpointError

__all__ = ['write_safetensors']

_DTYPES = {
    torch.float64: 'F64',
    torch.float32: 'F32',
    torch.float16: 'F16',
    torch.bfloat16: 'BF16',
    torch.int64: 'I64',
    torch.int32: 'I32',
    torch.int16: 'I16',
    torch.int8: 'I8',
    torch.uint8: 'U8',
    torch.bool: 'BOOL',
}

_Tensors = dict[str, TensorInfo]


def write_safetensors(
    checkpoint: Checkpoint,
    folder: Path,
    config: Mapping[str, Any],
    dtype: Optional[torch.dtype],
    progress: Progress,
    max_shard_bytes: float = 5e9,
) -> None:
    """Writes ``config.json`` and the weights as ``save_pretrained`` does.

    Args:
        checkpoint: What to write, under the names it gives; it is read once,
            block after block.
        folder: The folder.
        config: What goes into ``config.json``.
        dtype: Of floating-point tensors; None keeps each one's own.
        progress: Is told the bytes of each block.
        max_shard_bytes: Size of a file; a larger tensor has one of its own.

    Raises:
        CheckpointError: The checkpoint gives other rows than it promised, or
            a dtype that safetensors has not.
        OSError: A file can't be written.
    """
    tensors = stored_tensors(checkpoint, dtype)
    for name, info in tensors.items():
        if info.dtype not in _DTYPES:
            raise CheckpointError(
                checkpoint.path,
                f'{name} has dtype {info.dtype}, which safetensors files '
                'do not hold.',
                'pass a dtype to convert to, such as bfloat16.',
            )
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / 'config.json', config)
    shards = _split(tensors, max_shard_bytes)
    names = _file_names(len(shards))
    for file_name, shard in zip(names, shards, strict=True):
        _write_file(checkpoint, folder / file_name, shard, progress)
    if len(shards) > 1:
        index = {
            'metadata': {
                'total_size': sum(info.n_bytes for info in tensors.values()),
            },
            'weight_map': {
                name: file_name
                for file_name, shard in zip(names, shards)
                for name in shard
            },
        }
        _write_json(folder / 'model.safetensors.index.json', index)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + '\n')


def _split(tensors: _Tensors, max_shard_bytes: float) -> list[_Tensors]:
    """Deals tensors to files as ``huggingface_hub`` does."""
    shards: list[_Tensors] = []
    open_shard: _Tensors = {}
    n_bytes = 0
    for name, info in tensors.items():
        if info.n_bytes > max_shard_bytes:
            shards.append({name: info})
            continue
        if n_bytes + info.n_bytes > max_shard_bytes:
            shards.append(open_shard)
            open_shard, n_bytes = {}, 0
        open_shard[name] = info
        n_bytes += info.n_bytes
    return [*shards, open_shard] if open_shard else shards


def _file_names(n_shards: int) -> list[str]:
    if n_shards == 1:
        return ['model.safetensors']
    return [
        f'model-{i:05d}-of-{n_shards:05d}.safetensors'
        for i in range(1, n_shards + 1)
    ]


def _write_file(
    checkpoint: Checkpoint,
    path: Path,
    tensors: _Tensors,
    progress: Progress,
) -> None:
    # Large items first, so that each tensor starts at a multiple of its
    # item's size; then by name, as the safetensors library has them.
    ordered = dict(
        sorted(
            tensors.items(),
            key=lambda item: (-item[1].dtype.itemsize, item[0]),
        ),
    )
    with path.open('wb') as file:
        file.write(_header(ordered))
        for name, info in ordered.items():
            stream_tensor(checkpoint, name, info, file.write, progress)


def _header(tensors: _Tensors) -> bytes:
    header: dict[str, Any] = {'__metadata__': {'format': 'pt'}}
    end = 0
    for name, info in tensors.items():
        start, end = end, end + info.n_bytes
        header[name] = {
            'dtype': _DTYPES[info.dtype],
            'shape': info.shape,
            'data_offsets': [start, end],
        }
    text = json.dumps(header, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % 8)
    return len(text).to_bytes(8, 'little') + text
