"""Reads a Composer ``.pt`` file."""

import os
import weakref
from typing import Any, Mapping, Sequence

import torch

from foundry_upcycle.checkpoints.base import (
    CONFIG_KEY,
    HUGGINGFACE_KEY,
    StoredCheckpoint,
    TensorInfo,
    flatten_config,
)
from foundry_upcycle.checkpoints.companions import Companions
from foundry_upcycle.checkpoints.composer_files import from_composer
from foundry_upcycle.checkpoints.names import clean_names
from foundry_upcycle.checkpoints.readers.archive import (
    UnsafePickle,
    load_structure,
)
from foundry_upcycle.checkpoints.readers.stored import StoredTensor
from foundry_upcycle.checkpoints.source import SourceFiles
from foundry_upcycle.errors import CheckpointError

__all__ = ['MonolithicReader']


class MonolithicReader(StoredCheckpoint):
    """A ``Checkpoint`` of a ``.pt`` file.

    The file stays open: what is read is from one file, even if another one
    takes its name.

    Args:
        path: The file.

    Raises:
        CheckpointError: It is damaged, not Composer's, or would execute code
            to be read.
    """

    def __init__(self, path: str):
        self.path = path
        # Of a link, such as latest-rank0.pt, which a run sets anew: what it
        # points to now.
        folder, self._name = os.path.split(os.path.realpath(path))
        self.files = SourceFiles(folder)
        self._file = self.files.open(self._name)
        weakref.finalize(self, self._file.close)
        content = self._load()
        self._stored = self._locate(content['state']['model'])
        self.tensors = {
            name: TensorInfo(tuple(stored.meta.shape), stored.meta.dtype)
            for name, stored in self._stored.items()
        }
        self._huggingface = _lookup(content, HUGGINGFACE_KEY.split('.')) or {}
        config = _lookup(content, CONFIG_KEY.split('.'))
        self.model_config = flatten_config(path, config or {})

    def _load(self) -> dict[str, Any]:
        try:
            content = load_structure(self._file)
        except UnsafePickle as error:
            raise CheckpointError(
                self.path,
                f'it can be read only by executing {error}.',
                'save the dense run with save_weights_only: true, or remove '
                'the callback whose state is in it.',
            ) from error
        except OSError as error:
            raise self.files.unreadable(self._name, error) from error
        except Exception as error:
            raise CheckpointError(
                self.path,
                f'it is truncated or not a PyTorch file ({error}).',
                'copy it again, or save it again with Composer; unpack an '
                'archive (.tar, .gz, .lz4, .zst) first. A file of PyTorch '
                'before 1.6 is read after torch.save(torch.load(old), new).',
            ) from error
        if not isinstance(_lookup(content, ['state', 'model']), Mapping):
            raise CheckpointError(
                self.path,
                'it holds no state.model, so Composer did not write it.',
                'set source_path to a Composer checkpoint.',
            )
        return content

    def companions(self, with_tokenizer: bool = True) -> Companions:
        return from_composer(
            self.path,
            self._huggingface,
            self.model_config,
            with_tokenizer,
        )

    def _locate(self, model: Mapping[str, Any]) -> dict[str, StoredTensor]:
        located = {}
        for name, tensor in model.items():
            if not isinstance(tensor, torch.Tensor):
                continue
            stored = StoredTensor.of(tensor)
            if stored is None:
                raise CheckpointError(
                    self.path,
                    f'the data of {name} is not in it, or not as plain '
                    'numbers (the tensor is sparse or quantised).',
                    'copy it again, or save it again with Composer.',
                )
            located[name] = stored
        return clean_names(self.path, located)

    def read(self, name: str, dim: int, start: int, stop: int) -> torch.Tensor:
        try:
            part = self._stored[name].narrow(self._file, dim, start, stop)
        except (OSError, ValueError) as error:
            raise self.files.changed(self._name, error) from error
        self.files.check_open(self._name, self._file)
        return self._finite(name, part)


def _lookup(nested: Any, keys: Sequence[str]) -> Any:
    for key in keys:
        nested = nested.get(key) if isinstance(nested, Mapping) else None
    return nested
