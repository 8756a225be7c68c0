"""What a sharded folder's ``.metadata`` says, checked."""

import io
import itertools
import math
import pickle
from collections import Counter
from pathlib import Path
from typing import Any, Iterable, NamedTuple

import torch
from torch.distributed.checkpoint.metadata import (
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)

from foundry_upcycle.checkpoints.base import CONFIG_KEY, HUGGINGFACE_KEY
from foundry_upcycle.checkpoints.names import clean_names
from foundry_upcycle.checkpoints.source import SourceFiles
from foundry_upcycle.errors import CheckpointError

__all__ = ['METADATA', 'Chunk', 'Entry', 'Index', 'ShardedTensor', 'read_index']

METADATA = '.metadata'
_PREFIX = 'state.model.'
# More dimensions than any weight has.
_MOST_DIMS = 8

_GLOBALS = {
    ('torch', 'Size'),
    ('torch.serialization', '_get_layout'),
    ('torch.distributed.checkpoint.filesystem', '_StorageInfo'),
    ('collections', 'OrderedDict'),
    *(('pathlib', name) for name in ('PosixPath', 'WindowsPath', 'Path')),
    *(('torch.distributed.checkpoint.metadata', name) for name in (
        'BytesStorageMetadata',
        'ChunkStorageMetadata',
        'Metadata',
        'MetadataIndex',
        'StorageMeta',
        'TensorProperties',
        'TensorStorageMetadata',
        '_MEM_FORMAT_ENCODING',
    )),
}


class Entry(NamedTuple):
    """Where something is stored: a file, and from and to which byte."""
    file: str
    start: int
    stop: int


class Chunk(NamedTuple):
    """A part of a tensor: where in the tensor, and where it is stored."""
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    entry: Entry


class ShardedTensor(NamedTuple):
    """A tensor, and the chunks that make it up without holes or overlaps."""
    shape: tuple[int, ...]
    dtype: torch.dtype
    chunks: list[Chunk]


class Index(NamedTuple):
    """What ``.metadata`` says about the model.

    Attributes:
        tensors: Its tensors by plain name.
        config: Where the values of its config are stored, by key.
        companions: Where the values of its tokenizer and generation config are
            stored, by the names and places in lists that lead to them.
    """
    tensors: dict[str, ShardedTensor]
    config: dict[str, Entry]
    companions: dict[tuple[str | int, ...], Entry]

    def n_bytes(self) -> dict[str, int]:
        """Files that hold the model, and how long each must be at least."""
        entries = [*self.config.values()]
        for tensor in self.tensors.values():
            entries += [chunk.entry for chunk in tensor.chunks]
        needed: dict[str, int] = {}
        for entry in entries:
            needed[entry.file] = max(needed.get(entry.file, 0), entry.stop)
        return needed


def read_index(path: str, files: SourceFiles) -> Index:
    """Reads the ``.metadata`` of the folder ``path``.

    Raises:
        CheckpointError: It is missing, damaged, not Composer's, or would
            execute code to be read.
    """
    if not Path(path, METADATA).exists():
        raise CheckpointError(
            path,
            'the folder has no .metadata file.',
            'name the folder of one saved batch (such as ep0-ba100), which '
            'holds .metadata and *.distcp files, or a Hugging Face folder.',
        )
    try:
        return _parse(path, files.read(METADATA))
    except CheckpointError:
        raise
    # Damaged bytes make an unpickler raise almost anything.
    except Exception as error:
        raise CheckpointError(
            files.path(METADATA),
            f'it is damaged or not what PyTorch writes ({error}).',
            'copy the folder again, or save the checkpoint again.',
        ) from error


# Not the unpickler in C: of a damaged index it makes room for 2^32 objects.
class _Unpickler(pickle._Unpickler):  # type: ignore

    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == 'torch' and isinstance(
            getattr(torch, name, None),
            torch.dtype,
        )
        if is_dtype or (module, name) in _GLOBALS:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f'{module}.{name} is not allowed')


def _parse(path: str, content: bytes) -> Index:
    metadata = _Unpickler(io.BytesIO(content)).load()
    if not isinstance(metadata, Metadata):
        raise ValueError(f'it holds {type(metadata)}')
    entries = {
        index: _entry(info)
        for index, info in (metadata.storage_data or {}).items()
    }
    _check_disjoint(entries.values())
    tensors, config = {}, {}
    for key, info in metadata.state_dict_metadata.items():
        if key.startswith(f'{CONFIG_KEY}.'):
            name = key.removeprefix(f'{CONFIG_KEY}.')
            config[name] = _find(entries, MetadataIndex(key))
        elif key.startswith(_PREFIX) and isinstance(info,
                                                    TensorStorageMetadata):
            tensors[key.removeprefix(_PREFIX)] = _tensor(key, info, entries)
    companions = {
        _keys(keys, len(entries)): _find(entries, MetadataIndex(key))
        for key, keys in (metadata.planner_data or {}).items()
        if key.startswith(f'{HUGGINGFACE_KEY}.') and key in
        metadata.state_dict_metadata and not key.startswith(f'{CONFIG_KEY}.')
    }
    return Index(clean_names(path, tensors), config, companions)


def _keys(keys: Any, most: int) -> tuple[str | int, ...]:
    """Names and places in lists that lead to a value below ``huggingface``."""
    below = tuple(keys)[HUGGINGFACE_KEY.count('.') + 1:]
    for key in below:
        is_place = type(key) is int and 0 <= key < most
        if not is_place and not isinstance(key, str):
            raise ValueError(f'{below} lead to no value')
    if not below:
        raise ValueError(f'{keys} lead to no value')
    return below


def _entry(info: Any) -> Entry:
    file, start, length = info.relative_path, info.offset, info.length
    if Path(file).name != file:
        raise ValueError(
            f'it names {file!r}, which is not a file of this folder: do not '
            'use a folder that you do not trust',
        )
    if not (type(start) is type(length) is int and min(start, length) >= 0):
        raise ValueError(f'bytes {start!r} and {length!r} more of {file}')
    return Entry(file, start, start + length)


def _check_disjoint(entries: Iterable[Entry]) -> None:
    last = Entry('', 0, 0)
    for entry in sorted(entries):
        if entry.file == last.file and entry.start < last.stop:
            raise ValueError(f'the same bytes of {entry.file} are two things')
        last = entry


def _find(entries: dict[MetadataIndex, Entry], index: MetadataIndex) -> Entry:
    if index not in entries:
        raise ValueError(f'it does not say where {index.fqn} is stored')
    return entries[index]


def _tensor(
    key: str,
    info: TensorStorageMetadata,
    entries: dict[MetadataIndex, Entry],
) -> ShardedTensor:
    shape, dtype = _numbers(info.size), info.properties.dtype
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f'{key} has dtype {dtype!r}')
    chunks = [
        Chunk(
            _numbers(chunk.offsets),
            _numbers(chunk.sizes),
            _find(entries, MetadataIndex(key, chunk.offsets)),
        ) for chunk in info.chunks
    ]
    for chunk in chunks:
        n_bytes = math.prod(chunk.sizes) * dtype.itemsize
        if n_bytes > chunk.entry.stop - chunk.entry.start:
            raise ValueError(f'a chunk of {key} is larger than what is stored')
    if not _is_tiled(shape, chunks):
        raise ValueError(
            f'its chunks of {key} leave holes, overlap, or are not of shape '
            f'{shape}',
        )
    return ShardedTensor(shape, dtype, chunks)


def _numbers(sizes: Any) -> tuple[int, ...]:
    numbers = tuple(sizes)
    if any(type(n) is not int or n < 0 for n in numbers):
        raise ValueError(f'{numbers} are no sizes')
    return numbers


def _is_tiled(shape: tuple[int, ...], chunks: list[Chunk]) -> bool:
    """Whether each element of a tensor is in exactly one chunk.

    It is where the corners of all chunks, with alternating signs, cancel out
    to those of the whole: they are the derivative of how many chunks an
    element is in, along all dimensions.
    """
    if len(shape) > _MOST_DIMS:
        return False
    corners: Counter[tuple[int, ...]] = Counter()
    boxes: Any = [((0, ) * len(shape), shape, -1)]
    boxes += [(chunk.offsets, chunk.sizes, 1) for chunk in chunks]
    for offsets, sizes, count in boxes:
        if not len(offsets) == len(sizes) == len(shape):
            return False
        ends = [((o, 1), (o + s, -1))
                for o, s in zip(offsets, sizes, strict=True)]
        for corner in itertools.product(*ends):
            sign = count
            for _, of_dim in corner:
                sign *= of_dim
            corners[tuple(at for at, _ in corner)] += sign
    return not any(corners.values())
