"""A tensor in a file, mapped while it is used."""

import mmap
import sys
from contextlib import suppress
from typing import IO, NamedTuple, Optional

import torch

__all__ = ['StoredTensor']

# madvise: maps pages now, all at once, and copies none of them. Touching them
# one after the other takes twice the time. Python 3.11 has no name for it.
_MADV_POPULATE_READ = 22


class StoredTensor(NamedTuple):
    """A tensor in a file.

    Attributes:
        start: Where its storage starts in the file, in bytes.
        meta: Its shape, strides, dtype and offset in the storage.
    """
    start: int
    meta: torch.Tensor

    @classmethod
    def of(cls, fake: torch.Tensor) -> Optional['StoredTensor']:
        """Locates a tensor of ``load_structure``.

        Returns:
            None if its data is not in the file, or not as plain numbers.
        """
        is_plain = fake.layout is torch.strided and not (
            fake.is_quantized or fake.is_neg() or fake.is_conj()
        )
        storage = fake.untyped_storage() if is_plain else None
        n_bytes = getattr(storage, '_checkpoint_bytes', None)
        n_items = _first_item(fake) + _n_items(fake) if is_plain else 0
        if n_bytes is None or n_items * fake.itemsize > n_bytes:
            return None
        meta = torch.empty(
            n_items, dtype=fake.dtype, device='meta'
        ).as_strided(
            fake.shape,
            fake.stride(),
            _first_item(fake),
        )
        return cls(storage._checkpoint_offset, meta)  # type: ignore

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
