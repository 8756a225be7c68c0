"""Lazy readers: tensors of a checkpoint by name and slice.

No pickle that a checkpoint carries is ever executed: ``.pt`` files are read
with ``weights_only=True``, and a sharded folder's ``.metadata`` with an
unpickler that knows only the classes such a file needs.
"""

import io
import os
import pickle
from pathlib import Path
from typing import Any, Mapping, NamedTuple, Optional, Protocol, Sequence

import torch
from torch.distributed.checkpoint.metadata import (
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)

from foundry_upcycle.checkpoints.names import clean_name
from foundry_upcycle.errors import CheckpointError

__all__ = ['CheckpointReader', 'TensorInfo', 'flatten', 'open_checkpoint']

# Where Composer keeps the config of a Hugging Face model.
_CONFIG_KEY = 'state.integrations.huggingface.model.config.content'


class TensorInfo(NamedTuple):
    """Shape and dtype of a stored tensor."""
    shape: tuple[int, ...]
    dtype: torch.dtype


class CheckpointReader(Protocol):
    """Model tensors of a checkpoint, under the names of Composer's model.

    Attributes:
        path: Where the checkpoint is.
        tensors: Every model tensor it holds.
        model_config: The MPT config of the run that saved it, nested keys
            joined by dots; empty where the checkpoint carries none.
    """
    path: str
    tensors: dict[str, TensorInfo]
    model_config: dict[str, Any]

    def read(self, name: str, dim: int, start: int, stop: int) -> torch.Tensor:
        """Reads ``tensor.narrow(dim, start, stop - start)``, on the CPU.

        The result may be a view of the file: do not write to it.
        """
        ...


def open_checkpoint(path: str) -> CheckpointReader:
    """Opens a local Composer checkpoint.

    Args:
        path: A monolithic ``.pt`` file or a sharded (DCP) folder.

    Raises:
        CheckpointError: It is missing, damaged, none of these formats, or
            would execute code to be read.
    """
    if os.path.isdir(path):
        return _ShardedReader(path)
    if os.path.isfile(path):
        return _MonolithicReader(path)
    raise CheckpointError(
        path,
        'there is no such file or folder.',
        'set source_path to a dense Composer checkpoint.',
    )


def flatten(nested: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
    """Leaves of nested mappings, their keys joined by dots."""
    leaves = {}
    for key, value in nested.items():
        if isinstance(value, Mapping) and value:
            leaves.update(flatten(value, f'{prefix}{key}.'))
        else:
            leaves[f'{prefix}{key}'] = value
    return leaves


def _lookup(nested: Any, keys: Sequence[str]) -> Any:
    for key in keys:
        nested = nested.get(key) if isinstance(nested, Mapping) else None
    return nested


def _safe_globals() -> list[Any]:
    # What a Composer checkpoint holds beside tensors: timestamps, the torch
    # version and numpy's random state.
    import datetime

    import numpy as np
    from torch.torch_version import TorchVersion

    try:
        from numpy._core.multiarray import _reconstruct  # type: ignore
    except ImportError:  # numpy < 2
        from numpy.core.multiarray import _reconstruct  # type: ignore
    dtypes = [type(np.dtype(name)) for name in ('uint32', 'int64', 'float64')]
    return [
        datetime.timedelta,
        TorchVersion,
        _reconstruct,
        np.ndarray,
        np.dtype,
        *dtypes,
    ]


def _unsafe_globals(path: str) -> str:
    # Parses the pickle without running it.
    with torch.serialization.safe_globals(_safe_globals()):
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    return ', '.join(sorted(names)) or 'a pickle of unknown content'


class _MonolithicReader:
    """A Composer ``.pt`` file, mapped into memory."""

    def __init__(self, path: str):
        self.path = path
        content = self._load(path)
        self._state = {
            clean_name(name): tensor
            for name, tensor in content['state']['model'].items()
        }
        self.model_config = flatten(
            _lookup(content, _CONFIG_KEY.split('.')) or {},
        )
        self.tensors = {
            name: TensorInfo(tuple(tensor.shape), tensor.dtype)
            for name, tensor in self._state.items()
        }

    @staticmethod
    def _load(path: str) -> dict[str, Any]:
        try:
            with torch.serialization.safe_globals(_safe_globals()):
                content = torch.load(
                    path,
                    map_location='cpu',
                    mmap=True,
                    weights_only=True,
                )
        except pickle.UnpicklingError as error:
            raise CheckpointError(
                path,
                f'it can be read only by executing {_unsafe_globals(path)}.',
                'save the dense run with save_weights_only: true, or remove '
                'the callback whose state is in it.',
            ) from error
        except (RuntimeError, EOFError, OSError) as error:
            raise CheckpointError(
                path,
                f'it is truncated or not a PyTorch file ({error}).',
                'copy it again, or save it again with Composer.',
            ) from error
        if _lookup(content, ['state', 'model']) is None:
            raise CheckpointError(
                path,
                'it holds no state.model, so Composer did not write it.',
                'set source_path to a Composer checkpoint.',
            )
        return content

    def read(self, name: str, dim: int, start: int, stop: int) -> torch.Tensor:
        return self._state[name].narrow(dim, start, stop - start)


_METADATA_GLOBALS = {
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


class _MetadataUnpickler(pickle.Unpickler):

    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == 'torch' and isinstance(
            getattr(torch, name, None),
            torch.dtype,
        )
        if is_dtype or (module, name) in _METADATA_GLOBALS:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f'{module}.{name} is not allowed')


class _ShardedReader:
    """A folder that ``torch.distributed.checkpoint`` wrote for Composer."""

    _PREFIX = 'state.model.'

    def __init__(self, path: str):
        self.path = path
        self._metadata = self._load_metadata(path)
        stored = self._metadata.state_dict_metadata
        self._stored = {
            clean_name(key.removeprefix(self._PREFIX)): (key, info)
            for key, info in stored.items()
            if key.startswith(self._PREFIX)
            and isinstance(info, TensorStorageMetadata)
        }
        if not self._stored:
            raise CheckpointError(
                path,
                'its .metadata lists no state.model tensors, so Composer did '
                'not write it.',
                'set source_path to a Composer checkpoint.',
            )
        self.tensors = {
            name: TensorInfo(tuple(info.size), info.properties.dtype)
            for name, (_, info) in self._stored.items()
        }
        prefix = f'{_CONFIG_KEY}.'
        config_keys = [key for key in stored if key.startswith(prefix)]
        self._check_files(config_keys)
        self.model_config = {
            key.removeprefix(prefix): self._load_entry(key)
            for key in config_keys
        }

    @staticmethod
    def _load_metadata(path: str) -> Metadata:
        file = Path(path, '.metadata')
        if not file.is_file():
            raise CheckpointError(
                path,
                'the folder has no .metadata file.',
                'set source_path to the folder of one saved batch (such as '
                'ep0-ba100), which holds .metadata and *.distcp files.',
            )
        try:
            with file.open('rb') as stream:
                metadata = _MetadataUnpickler(stream).load()
            if not isinstance(metadata, Metadata):
                raise pickle.UnpicklingError(f'it holds {type(metadata)}')
            return metadata
        except (pickle.UnpicklingError, EOFError, AttributeError) as error:
            raise CheckpointError(
                file,
                f'it is damaged or not what PyTorch writes ({error}).',
                'copy the folder again, or save the checkpoint again.',
            ) from error

    def _check_files(self, config_keys: Sequence[str]) -> None:
        entries = [self._storage_info(key) for key in config_keys]
        for key, info in self._stored.values():
            entries += [self._storage_info(key, c.offsets) for c in info.chunks]
        ends: dict[str, int] = {}
        for entry in entries:
            end = entry.offset + entry.length
            file = entry.relative_path
            ends[file] = max(ends.get(file, 0), end)
        for file, end in ends.items():
            full = Path(self.path, file)
            size = full.stat().st_size if full.is_file() else None
            if size is None or size < end:
                raise CheckpointError(
                    full,
                    'the shard is missing.' if size is None else
                    f'the shard is truncated: {size} bytes, {end} needed.',
                    'copy the folder again; every *.distcp file is needed.',
                )

    def _storage_info(
        self,
        key: str,
        offsets: Optional[torch.Size] = None,
    ) -> Any:
        assert self._metadata.storage_data is not None
        return self._metadata.storage_data[MetadataIndex(key, offsets)]

    def _load_entry(
        self,
        key: str,
        offsets: Optional[torch.Size] = None,
    ) -> Any:
        """Loads one chunk of a tensor, or a value that is no tensor."""
        info = self._storage_info(key, offsets)
        with Path(self.path, info.relative_path).open('rb') as stream:
            stream.seek(info.offset)
            # torch.load looks for the archive's end at the stream's end.
            data = io.BytesIO(stream.read(info.length))
        try:
            return torch.load(data, map_location='cpu', weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise CheckpointError(
                self.path,
                f'the stored bytes of {key} are damaged.',
                'copy the folder again.',
            ) from error

    def read(self, name: str, dim: int, start: int, stop: int) -> torch.Tensor:
        key, info = self._stored[name]
        out = torch.empty(
            *info.size[:dim],
            stop - start,
            *info.size[dim + 1:],
            dtype=info.properties.dtype,
        )
        for chunk in info.chunks:
            offset, size = chunk.offsets[dim], chunk.sizes[dim]
            first, last = max(start, offset), min(stop, offset + size)
            if first >= last or 0 in chunk.sizes:
                continue
            stored = self._load_entry(key, chunk.offsets)
            where = [
                slice(o, o + s) for o, s in zip(chunk.offsets, chunk.sizes)
            ]
            where[dim] = slice(first - start, last - start)
            out[tuple(where)] = stored.narrow(dim, first - offset, last - first)
        return out
