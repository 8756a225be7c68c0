"""Reads a folder that ``torch.distributed.checkpoint`` wrote for Composer."""

from typing import Any

import torch
from torch.distributed.checkpoint._traverse import set_element

from foundry_upcycle.checkpoints.base import (
    StoredCheckpoint,
    TensorInfo,
    flatten_config,
)
from foundry_upcycle.checkpoints.companions import Companions
from foundry_upcycle.checkpoints.composer_files import from_composer
from foundry_upcycle.checkpoints.readers.archive import load_structure
from foundry_upcycle.checkpoints.readers.metadata import (
    Chunk,
    Entry,
    ShardedTensor,
    read_index,
)
from foundry_upcycle.checkpoints.readers.stored import StoredTensor
from foundry_upcycle.checkpoints.source import SourceFiles
from foundry_upcycle.errors import CheckpointError

__all__ = ['ShardedReader', 'shard_files']


def shard_files(path: str) -> set[str]:
    """Names of the files, of a folder with ``.metadata``, that hold the model.

    Raises:
        CheckpointError: ``.metadata`` is damaged or not Composer's.
    """
    return {*read_index(path, SourceFiles(path)).n_bytes()}


class ShardedReader(StoredCheckpoint):
    """A ``Checkpoint`` of a sharded folder.

    Args:
        path: The folder.

    Raises:
        CheckpointError: A file is missing, truncated, damaged, or not
            Composer's.
    """

    def __init__(self, path: str):
        self.path = path
        self.files = SourceFiles(path)
        index = read_index(path, self.files)
        self._check_sizes(index.n_bytes())
        self._tensors = index.tensors
        self._companions = index.companions
        # Chunks that were read before.
        self._located: dict[Chunk, StoredTensor] = {}
        self.tensors = {
            name: TensorInfo(tensor.shape, tensor.dtype)
            for name, tensor in self._tensors.items()
        }
        config = {
            key: self._load(key, entry)
            for key, entry in index.config.items()
        }
        self.model_config = flatten_config(path, config)

    def companions(self, with_tokenizer: bool = True) -> Companions:
        found: dict[str, Any] = {}
        for path, entry in self._companions.items():
            # Composer makes an entry of each token.
            if with_tokenizer or path[0] != 'tokenizer':
                name = '.'.join(map(str, path))
                value = self._load(name, entry)
                try:
                    set_element(found, path, value)
                except Exception as error:
                    raise self._damaged(name, entry, error) from error
        _add_empty(found)
        return from_composer(
            self.path,
            found,
            self.model_config,
            with_tokenizer,
        )

    def _check_sizes(self, needed: dict[str, int]) -> None:
        if needed:
            self.files.check(*needed)
        sizes = self.files.n_bytes
        for file, n_bytes in needed.items():
            if sizes[file] < n_bytes:
                raise CheckpointError(
                    self.files.path(file),
                    f'the shard is truncated: {sizes[file]} bytes, {n_bytes} '
                    'needed.',
                    'copy the folder again; every *.distcp file is needed.',
                )

    def _load(self, name: str, entry: Entry) -> Any:
        """What ``torch.save`` wrote as an entry, tensors without data."""
        with self.files.open(entry.file) as file:
            try:
                return load_structure(file, entry.start, entry.stop)
            except OSError as error:
                raise self.files.unreadable(entry.file, error) from error
            except Exception as error:
                raise self._damaged(name, entry, error) from error

    def _damaged(
        self,
        name: str,
        entry: Entry,
        problem: object,
    ) -> CheckpointError:
        return CheckpointError(
            self.files.path(entry.file),
            f'the stored bytes of {name} are damaged ({problem}).',
            'copy the folder again.',
        )

    def _locate(self, name: str, chunk: Chunk) -> StoredTensor:
        fake = self._load(name, chunk.entry)
        dtype = self._tensors[name].dtype
        found = fake if isinstance(fake, torch.Tensor) else torch.empty(0)
        stored = StoredTensor.of(found)
        if (stored is None or found.shape != chunk.sizes
                or found.dtype != dtype):
            problem = f'it is not a {dtype} of shape {chunk.sizes}'
            raise self._damaged(name, chunk.entry, problem)
        return stored

    def _read_chunk(
        self,
        name: str,
        chunk: Chunk,
        dim: int,
        start: int,
        stop: int,
    ) -> torch.Tensor:
        if chunk not in self._located:
            self._located[chunk] = self._locate(name, chunk)
        file = chunk.entry.file
        with self.files.open(file) as stream:
            try:
                return self._located[chunk].narrow(stream, dim, start, stop)
            except (OSError, ValueError) as error:
                raise self.files.changed(file, error) from error

    def read(self, name: str, dim: int, start: int, stop: int) -> torch.Tensor:
        tensor = self._tensors[name]
        if len(tensor.chunks) == 1:
            chunk = tensor.chunks[0]
            part = self._read_chunk(name, chunk, dim, start, stop)
        else:
            part = self._assemble(name, tensor, dim, start, stop)
        return self._finite(name, part)

    def _assemble(
        self,
        name: str,
        tensor: ShardedTensor,
        dim: int,
        start: int,
        stop: int,
    ) -> torch.Tensor:
        out = torch.empty(
            *tensor.shape[:dim],
            stop - start,
            *tensor.shape[dim + 1:],
            dtype=tensor.dtype,
        )
        for chunk in tensor.chunks:
            offset, size = chunk.offsets[dim], chunk.sizes[dim]
            first, last = max(start, offset), min(stop, offset + size)
            if first >= last or 0 in chunk.sizes:
                continue
            where = [
                slice(o, o + s) for o, s in zip(chunk.offsets, chunk.sizes)
            ]
            where[dim] = slice(first - start, last - start)
            out[tuple(where)] = self._read_chunk(
                name,
                chunk,
                dim,
                first - offset,
                last - offset,
            )
        return out


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
