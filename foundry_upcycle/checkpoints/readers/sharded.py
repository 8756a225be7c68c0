"""Reads a folder that ``torch.distributed.checkpoint`` wrote for Composer."""

import pickle
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Iterator, Optional

import torch
from torch.distributed.checkpoint._traverse import set_element
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.utils import _create_file_view

from foundry_upcycle.checkpoints.base import (
    CONFIG_KEY,
    HUGGINGFACE_KEY,
    Checkpoint,
    TensorInfo,
)
from foundry_upcycle.checkpoints.companions import Companions
from foundry_upcycle.checkpoints.composer_files import from_composer
from foundry_upcycle.checkpoints.names import clean_name
from foundry_upcycle.checkpoints.readers.monolithic import (
    StoredTensor,
    load_structure,
)
from foundry_upcycle.errors import CheckpointError

__all__ = ['ShardedReader', 'shard_files']

_PREFIX = 'state.model.'

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


class _Index:
    """What a folder's ``.metadata`` says about the model.

    Attributes:
        tensors: Tensor name -> its key and chunks.
        config_keys: Keys of the model's config.
        companion_keys: Keys of the tokenizer and the generation config -> the
            names and places in lists that lead there from ``huggingface``.
    """

    def __init__(self, path: str):
        self.path = path
        metadata = _load_metadata(path)
        self._storage: dict[MetadataIndex, Any] = metadata.storage_data or {}
        stored = metadata.state_dict_metadata
        self.tensors = {
            clean_name(key.removeprefix(_PREFIX)): (key, info)
            for key, info in stored.items()
            if key.startswith(_PREFIX)
            and isinstance(info, TensorStorageMetadata)
        }
        if not self.tensors:
            raise CheckpointError(
                path,
                'its .metadata lists no state.model tensors, so Composer did '
                'not write it.',
                'set source_path to a Composer checkpoint.',
            )
        prefix = f'{CONFIG_KEY}.'
        self.config_keys = [key for key in stored if key.startswith(prefix)]
        depth = HUGGINGFACE_KEY.count('.') + 1
        self.companion_keys = {
            key: path[depth:]
            for key, path in (metadata.planner_data or {}).items()
            if key.startswith(f'{HUGGINGFACE_KEY}.') and key in stored
            and not key.startswith(prefix)
        }

    def entry(self, key: str, offsets: Optional[torch.Size] = None) -> Any:
        """Where one chunk of a tensor, or a value that is none, is stored."""
        index = MetadataIndex(key, offsets)
        if index not in self._storage:
            raise CheckpointError(
                Path(self.path, '.metadata'),
                f'it does not say where {key} is stored.',
                'copy the folder again, or save the checkpoint again.',
            )
        return self._storage[index]

    def needed_bytes(self) -> dict[str, int]:
        """Files that hold the model, and how long each must be at least."""
        entries = [self.entry(key) for key in self.config_keys]
        for key, info in self.tensors.values():
            entries += [self.entry(key, chunk.offsets) for chunk in info.chunks]
        needed: dict[str, int] = {}
        for entry in entries:
            end = entry.offset + entry.length
            file = entry.relative_path
            if Path(file).name != file:
                raise CheckpointError(
                    Path(self.path, '.metadata'),
                    f'it names {file!r}, which is not a file of this folder.',
                    'do not use a folder that you do not trust; copy it again.',
                )
            needed[file] = max(needed.get(file, 0), end)
        return needed


def _load_metadata(path: str) -> Metadata:
    file = Path(path, '.metadata')
    if not file.is_file():
        raise CheckpointError(
            path,
            'the folder has no .metadata file.',
            'name the folder of one saved batch (such as ep0-ba100), which '
            'holds .metadata and *.distcp files, or a Hugging Face folder.',
        )
    try:
        with file.open('rb') as stream:
            metadata = _MetadataUnpickler(stream).load()
        if not isinstance(metadata, Metadata):
            raise pickle.UnpicklingError(f'it holds {type(metadata)}')
        return metadata
    # Damaged bytes make an unpickler raise almost anything.
    except Exception as error:
        raise CheckpointError(
            file,
            f'it is damaged or not what PyTorch writes ({error}).',
            'copy the folder again, or save the checkpoint again.',
        ) from error


def shard_files(path: str) -> set[str]:
    """Names of the files, of a folder with ``.metadata``, that hold the model.

    Raises:
        CheckpointError: ``.metadata`` is damaged or not Composer's.
    """
    return set(_Index(path).needed_bytes())


class ShardedReader(Checkpoint):
    """A ``Checkpoint`` of a sharded folder.

    Args:
        path: The folder.

    Raises:
        CheckpointError: A file is missing, truncated, damaged, or not
            Composer's.
    """

    def __init__(self, path: str):
        self.path = path
        self._index = _Index(path)
        self._check_files()
        # Chunks of tensors that were read before: key and offsets -> where.
        self._located: dict[tuple[str, torch.Size], StoredTensor] = {}
        self.tensors = {
            name: TensorInfo(tuple(info.size), info.properties.dtype)
            for name, (_, info) in self._index.tensors.items()
        }
        self.model_config = {
            key.removeprefix(f'{CONFIG_KEY}.'): self._load_value(key)
            for key in self._index.config_keys
        }

    def companions(self, with_tokenizer: bool = True) -> Companions:
        found: dict[str, Any] = {}
        for key, path in self._index.companion_keys.items():
            # Composer makes an entry of each token.
            if with_tokenizer or path[0] != 'tokenizer':
                set_element(found, path, self._load_value(key))
        _add_empty(found)
        return from_composer(
            self.path,
            found,
            self.model_config,
            with_tokenizer,
        )

    def _check_files(self) -> None:
        for file, n_bytes in self._index.needed_bytes().items():
            full = Path(self.path, file)
            size = full.stat().st_size if full.is_file() else None
            if size is None or size < n_bytes:
                raise CheckpointError(
                    full,
                    'the shard is missing.' if size is None else
                    f'the shard is truncated: {size} bytes, {n_bytes} needed.',
                    'copy the folder again; every *.distcp file is needed.',
                )

    @contextmanager
    def _open_entry(
        self,
        key: str,
        offsets: Optional[torch.Size] = None,
    ) -> Iterator[IO[bytes]]:
        """Yields an entry of a file as if it were a file of its own."""
        entry = self._index.entry(key, offsets)
        try:
            with Path(self.path, entry.relative_path).open('rb') as file:
                # torch.load looks for the archive's end at the stream's end.
                view: Any = _create_file_view(file, entry.offset, entry.length)
                yield view
        except OSError as error:
            raise self._changed(key, error) from error
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise CheckpointError(
                self.path,
                f'the stored bytes of {key} are damaged.',
                'copy the folder again.',
            ) from error

    def _changed(self, key: str, error: Exception) -> CheckpointError:
        return CheckpointError(
            self.path,
            f'{key} can no longer be read ({error}).',
            'see that nothing changes or removes it meanwhile (as a run does '
            'that keeps only its last checkpoints), or copy it again.',
        )

    def _load_value(self, key: str) -> Any:
        with self._open_entry(key) as view:
            return torch.load(view, weights_only=True)

    def _locate(self, key: str, chunk: ChunkStorageMetadata) -> StoredTensor:
        entry = self._index.entry(key, chunk.offsets)
        with self._open_entry(key, chunk.offsets) as view:
            fake = load_structure(view)
            if not isinstance(fake, torch.Tensor) or fake.shape != chunk.sizes:
                raise RuntimeError(f'it is no tensor of shape {chunk.sizes}')
            stored = StoredTensor.of(fake, entry.offset)
            if stored is None or stored.end > entry.offset + entry.length:
                raise RuntimeError('its data is not in it')
            return stored

    def _read_chunk(
        self,
        key: str,
        chunk: ChunkStorageMetadata,
        dim: int,
        start: int,
        stop: int,
    ) -> torch.Tensor:
        index = (key, chunk.offsets)
        if index not in self._located:
            self._located[index] = self._locate(key, chunk)
        file = Path(self.path, self._index.entry(*index).relative_path)
        try:
            with file.open('rb') as stream:
                return self._located[index].narrow(stream, dim, start, stop)
        except (OSError, ValueError) as error:
            raise self._changed(key, error) from error

    def read(self, name: str, dim: int, start: int, stop: int) -> torch.Tensor:
        key, info = self._index.tensors[name]
        if len(info.chunks) == 1:
            chunk = info.chunks[0]
            part = self._read_chunk(key, chunk, dim, start, stop)
            return self._finite(name, part)
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
            where = [
                slice(o, o + s) for o, s in zip(chunk.offsets, chunk.sizes)
            ]
            where[dim] = slice(first - start, last - start)
            out[tuple(where)] = self._read_chunk(
                key,
                chunk,
                dim,
                first - offset,
                last - offset,
            )
        return self._finite(name, out)


def _add_empty(nested: Any) -> None:
    """Puts back the mapping that a template of a tokenizer may have empty.

    Where nothing is, a sharded checkpoint has no entry; ``tokenizers`` wants
    one.
    """
    values = nested.values() if isinstance(nested, dict) else nested
    if isinstance(nested, dict) and nested.get('type') == 'TemplateProcessing':
        nested.setdefault('special_tokens', {})
    for value in values:
        if isinstance(value, (dict, list)):
            _add_empty(value)
