"""Reads a Composer ``.pt`` file; each tensor is mapped while it is used."""

import datetime
import mmap
import pickle
import sys
import weakref
from contextlib import suppress
from typing import IO, Any, Mapping, NamedTuple, Optional, Sequence

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.torch_version import TorchVersion

from foundry_upcycle.checkpoints.base import (
    CONFIG_KEY,
    HUGGINGFACE_KEY,
    Checkpoint,
    TensorInfo,
    flatten,
)
from foundry_upcycle.checkpoints.companions import Companions
from foundry_upcycle.checkpoints.composer_files import from_composer
from foundry_upcycle.checkpoints.names import clean_name
from foundry_upcycle.errors import CheckpointError

__all__ = ['MonolithicReader', 'StoredTensor', 'load_structure']

# madvise: maps pages now, all at once, and copies none of them. Touching them
# one after the other takes twice the time. Python 3.11 has no name for it.
_MADV_POPULATE_READ = 22


def _safe_globals() -> list[Any]:
    # What a Composer checkpoint holds beside tensors: timestamps, the torch
    # version and numpy's random state.
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


class StoredTensor(NamedTuple):
    """A tensor in a file.

    Attributes:
        start: Where its storage starts in the file, in bytes.
        meta: Its shape, strides, dtype and offset in the storage.
    """
    start: int
    meta: torch.Tensor

    @classmethod
    def of(
        cls,
        fake: torch.Tensor,
        archive_start: int = 0,
    ) -> Optional['StoredTensor']:
        """Locates a tensor of ``load_structure``.

        Args:
            fake: The tensor.
            archive_start: Where the archive starts in the file, in bytes.

        Returns:
            None if its data is not in the archive.
        """
        # The fake storage itself has twice the size, or more, in torch 2.7.
        offset = fake.untyped_storage()._checkpoint_offset
        if offset is None:
            return None
        n_items = _first_item(fake) + _n_items(fake)
        meta = torch.empty(
            n_items, dtype=fake.dtype, device='meta'
        ).as_strided(
            fake.shape,
            fake.stride(),
            _first_item(fake),
        )
        return cls(archive_start + offset, meta)

    @property
    def end(self) -> int:
        """Where its last byte ends in the file."""
        n_items = _first_item(self.meta) + _n_items(self.meta)
        return self.start + n_items * self.meta.itemsize

    def narrow(
        self,
        file: IO[bytes],
        dim: int,
        start: int,
        stop: int,
    ) -> torch.Tensor:
        """Maps ``tensor.narrow(dim, start, stop - start)`` and no more.

        The file is unmapped, and its pages leave this process, with the last
        reference to the result.
        """
        part = self.meta.narrow(dim, start, stop - start)
        n_items = _n_items(part)
        if n_items == 0:
            return torch.empty(part.shape, dtype=part.dtype)
        first = self.start + _first_item(part) * part.itemsize
        skipped = first % mmap.ALLOCATIONGRANULARITY
        pages = mmap.mmap(
            file.fileno(),
            skipped + n_items * part.itemsize,
            access=mmap.ACCESS_COPY,
            offset=first - skipped,
        )
        if part.numel() == n_items and sys.platform == 'linux':
            with suppress(OSError):  # Linux before 5.14.
                pages.madvise(_MADV_POPULATE_READ)
        items = torch.frombuffer(
            pages,
            dtype=part.dtype,
            count=n_items,
            offset=skipped,
        )
        return items.as_strided(part.shape, part.stride())


def _first_item(tensor: torch.Tensor) -> int:
    return int(tensor.storage_offset())


def _n_items(tensor: torch.Tensor) -> int:
    """Items of the storage from the tensor's first to its last."""
    if tensor.numel() == 0:
        return 0
    last = [(n - 1) * s for n, s in zip(tensor.shape, tensor.stride())]
    return 1 + sum(last)


def load_structure(stream: IO[bytes]) -> Any:
    """Unpickles what ``torch.save`` wrote, without any tensor's data.

    Raises:
        RuntimeError: It is damaged, or of a machine with another byte order.
        pickle.UnpicklingError: It could be read only by executing code.
    """
    # Torch's own loader dies of the wrong byte order, with fake tensors.
    archive: Any = torch._C.PyTorchFileReader(stream)
    if archive.has_record('byteorder'):
        order = archive.get_record('byteorder').decode()
        if order != sys.byteorder:
            raise RuntimeError(f'its byte order is {order}-endian')
    stream.seek(0)
    with (
            FakeTensorMode(),
            torch.serialization.safe_globals(_safe_globals()),
    ):
        return torch.load(stream, map_location='cpu', weights_only=True)


class MonolithicReader(Checkpoint):
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
        try:
            self._file = open(path, 'rb')
        except OSError as error:
            raise CheckpointError(
                path,
                f'it can not be opened ({error}).',
                'make it a file that you may read.',
            ) from error
        weakref.finalize(self, self._file.close)
        content = _load(path, self._file)
        self._stored = self._locate(content['state']['model'])
        self.tensors = {
            name: TensorInfo(tuple(stored.meta.shape), stored.meta.dtype)
            for name, stored in self._stored.items()
        }
        self._huggingface = _lookup(content, HUGGINGFACE_KEY.split('.')) or {}
        config = _lookup(content, CONFIG_KEY.split('.'))
        self.model_config = flatten(config or {})

    def companions(self, with_tokenizer: bool = True) -> Companions:
        return from_composer(
            self.path,
            self._huggingface,
            self.model_config,
            with_tokenizer,
        )

    def _locate(self, model: Mapping[str, Any]) -> dict[str, StoredTensor]:
        located = {}
        size = self._file.seek(0, 2)
        for name, tensor in model.items():
            if not isinstance(tensor, torch.Tensor):
                continue
            stored = StoredTensor.of(tensor)
            if stored is None or stored.end > size:
                raise CheckpointError(
                    self.path,
                    f'the data of {name} is not in it.',
                    'copy it again, or save it again with Composer.',
                )
            located[clean_name(name)] = stored
        return located

    def read(self, name: str, dim: int, start: int, stop: int) -> torch.Tensor:
        try:
            part = self._stored[name].narrow(self._file, dim, start, stop)
        except (OSError, ValueError) as error:
            raise CheckpointError(
                self.path,
                f'{name} can no longer be read ({error}).',
                'see that nothing changes it meanwhile, or copy it again.',
            ) from error
        return self._finite(name, part)


def _load(path: str, file: IO[bytes]) -> dict[str, Any]:
    try:
        content = load_structure(file)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            path,
            f'it can be read only by executing {_unsafe_globals(path)}.',
            'save the dense run with save_weights_only: true, or remove the '
            'callback whose state is in it.',
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise CheckpointError(
            path,
            f'it is truncated or not a PyTorch file ({error}).',
            'copy it again, or save it again with Composer; unpack an archive '
            '(.tar, .gz, .lz4, .zst) first.',
        ) from error
    if not isinstance(_lookup(content, ['state', 'model']), Mapping):
        raise CheckpointError(
            path,
            'it holds no state.model, so Composer did not write it.',
            'set source_path to a Composer checkpoint.',
        )
    return content


def _unsafe_globals(path: str) -> str:
    # Parses the pickle without running it.
    with torch.serialization.safe_globals(_safe_globals()):
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    return ', '.join(sorted(names)) or 'a pickle of unknown content'


def _lookup(nested: Any, keys: Sequence[str]) -> Any:
    for key in keys:
        nested = nested.get(key) if isinstance(nested, Mapping) else None
    return nested
